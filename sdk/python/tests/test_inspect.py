"""inspect_ai's own checks of a sandbox, against a real daemon: skipped unless MAYFLY_SOCKET names its Unix socket.

The golden that MAYFLY_GOLDEN names needs adduser, ps and the user that MAYFLY_USER names, who is not root.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")
if not os.environ.get("MAYFLY_SOCKET"):
    pytest.skip("MAYFLY_SOCKET names no daemon", allow_module_level=True)

from inspect_ai.util._sandbox import self_check  # noqa: E402
from inspect_ai.util._sandbox.registry import registry_find_sandboxenv  # noqa: E402
from inspect_ai.util._sandbox.self_check import *  # noqa: E402, F403

from mayfly.inspect import MayflySandboxConfig, MayflySandboxEnvironment  # noqa: E402

GOLDEN = os.environ.get("MAYFLY_GOLDEN", "default")
USER = os.environ.get("MAYFLY_USER")


@pytest.fixture
async def sandbox_env():
    config = MayflySandboxConfig(golden=GOLDEN, user=USER)
    environments = await MayflySandboxEnvironment.sample_init("self_check", config, {})
    yield environments["default"]
    await MayflySandboxEnvironment.sample_cleanup("self_check", config, environments, False)


def test_none_of_the_checks_is_left_out():
    checks = [name for name in vars(self_check) if name.startswith("test_")]
    assert len(checks) >= 44 and all(globals()[name] is getattr(self_check, name) for name in checks)


def test_configurations_can_be_kept_in_sets():
    config = MayflySandboxConfig(golden="a", env={"A": "1", "B": "2"}, egress=("pypi.org",))
    same = MayflySandboxConfig(golden="a", env={"B": "2", "A": "1"}, egress=("pypi.org",))
    assert len({config, same, MayflySandboxConfig(golden="b")}) == 2


def test_it_is_found_by_its_name():
    assert registry_find_sandboxenv("mayfly") is MayflySandboxEnvironment


async def test_long_output_is_kept_from_its_end(sandbox_env):
    result = await sandbox_env.exec(["sh", "-c", "head -c 30000000 /dev/zero | tr '\\0' x; echo end"])
    assert result.success and len(result.stdout) == 10 << 20 and result.stdout.endswith("xend\n")


async def test_a_program_that_is_not_there_is_a_result(sandbox_env):
    result = await sandbox_env.exec(["no-such-program"])
    assert result.returncode == 127 and "no-such-program" in result.stderr


def test_an_evaluation_has_a_session_for_each_sample(tmp_path):
    inspect = Path(sys.executable).parent / "inspect"
    command = [inspect, "eval", "inspect_task.py", "--sandbox", f"mayfly:{GOLDEN}"]
    command += ["--model", "none", "--display", "plain", "--log-dir", tmp_path, "--log-format", "json"]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    [log] = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert log["status"] == "success", done.stdout
    said = [sample["scores"]["marks"]["explanation"].split() for sample in log["samples"]]
    # Each sample finds what it has written itself, in a guest of its own.
    assert [words[:-1] for words in said] == [["sample-1"], ["sample-2"], ["sample-3"]]
    assert len({words[-1] for words in said}) == 3
