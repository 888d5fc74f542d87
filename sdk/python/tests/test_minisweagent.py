"""mini-swe-agent's environment in a session: skipped without it, and unless MAYFLY_SOCKET names the socket of a daemon."""

import os

import pytest

pytest.importorskip("minisweagent")
if not os.environ.get("MAYFLY_SOCKET"):
    pytest.skip("MAYFLY_SOCKET names no daemon", allow_module_level=True)

from minisweagent.environments import get_environment  # noqa: E402
from minisweagent.exceptions import Submitted  # noqa: E402

import mayfly  # noqa: E402

GOLDEN = os.environ.get("MAYFLY_GOLDEN", "default")
CLASS = "mayfly.minisweagent.MayflyEnvironment"


def environment(**config):
    return get_environment({"environment_class": CLASS, "golden": GOLDEN, **config})


@pytest.mark.parametrize("place", [{"cwd": "/tmp"}, {"image": "busybox", "cwd": "/tmp", "interpreter": ["sh", "-c"]}])
def test_commands_run_in_a_session_or_a_container_of_it(place):
    env = environment(env={"A": "b"}, **place)
    session_id = env._session.id
    try:
        said = env.execute({"command": "pwd; echo $A; echo err >&2; exit 3"})
        assert (said["output"], said["returncode"], said["exception_info"]) == ("/tmp\nb\nerr\n", 3, "")
        assert env.execute({"command": "pwd"}, cwd="/")["output"] == "/\n"
        slow = env.execute({"command": "echo begun; sleep 600"}, timeout=2)
        # A container may need longer than that for its first word.
        assert slow["output"] == "begun\n" or "image" in place
        assert slow["returncode"] == -1 and "did not end" in slow["exception_info"]
        with pytest.raises(Submitted) as done:
            env.execute({"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo patch"})
        assert done.value.messages[0]["content"] == "patch\n"
        assert env.serialize()["info"]["config"]["environment_type"] == CLASS
        assert env.get_template_vars(x=1)["golden"] == GOLDEN
    finally:
        env.cleanup()
    with mayfly.Client() as client, pytest.raises(mayfly.MayflyError) as gone:
        client.get(session_id)
    assert gone.value.code == "session_gone"
