"""Harbor trials in sessions: skipped without Harbor, and unless MAYFLY_SOCKET names the socket of a daemon."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("harbor")
if not os.environ.get("MAYFLY_SOCKET"):
    pytest.skip("MAYFLY_SOCKET names no daemon", allow_module_level=True)

GOLDEN = os.environ.get("MAYFLY_GOLDEN", "default")
# One with Docker.
DOCKER_GOLDEN = os.environ.get("MAYFLY_DOCKER_GOLDEN", "default")
HERE = Path(__file__).parent


def trial(folder, task, agent="oracle", **options):
    """Runs one trial, and returns its folder and its reward."""
    harbor = Path(sys.executable).parent / "harbor"
    command = [harbor, "run", "-p", HERE / task, "-a", agent, "--env", "mayfly.harbor:MayflyEnvironment", "-o", folder]
    for name, value in {"golden": GOLDEN, **options}.items():
        command += ["--ek", f"{name}={value}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [(path, json.loads(path.read_text())) for path in folder.rglob("result.json")]
    [(path, result)] = [(path, result) for path, result in results if "verifier_result" in result]
    assert result["exception_info"] is None, result["exception_info"]
    return path.parent, result["verifier_result"]["rewards"]["reward"]


def test_the_oracle_is_rewarded(tmp_path):
    folder, reward = trial(tmp_path, "harbor-task")
    assert reward == 1.0
    more = folder / "verifier" / "more"
    assert (more / "user").read_text() == (more / "soft").read_text() == "root\n"
    assert (more / "hard").samefile(more / "user") and (more / "soft").is_symlink()
    # What leads out of the folder, or is no file, stays there.
    assert sorted(path.name for path in more.iterdir()) == ["hard", "none", "soft", "user"]


def test_who_does_nothing_is_not_rewarded(tmp_path):
    assert trial(tmp_path, "harbor-task", agent="nop")[1] == 0.0


def test_commands_are_those_of_the_user_that_is_named(tmp_path):
    folder, _ = trial(tmp_path, "harbor-task", agent="nop", user="nobody")
    assert (folder / "verifier" / "more" / "user").read_text() == "nobody\n"


@pytest.fixture(scope="module")
def containers(tmp_path_factory):
    """The task with containers, whose image is made of a package."""
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        pytest.skip("not root, or there is no mmdebstrap")
    task = tmp_path_factory.mktemp("tasks") / "containers"
    shutil.copytree(HERE / "harbor-compose-task", task)
    archive = task / "environment" / "bash.tar"
    make = ["mmdebstrap", "--quiet", "--variant=extract", "--include=bash-static", "trixie", archive]
    subprocess.run([*make, "http://deb.debian.org/debian"], check=True)
    return task


def test_containers_of_a_compose_file_run_in_the_session(tmp_path, containers):
    folder, reward = trial(tmp_path, containers, golden=DOCKER_GOLDEN)
    assert reward == 1.0
    assert (folder / "verifier" / "more" / "seen").read_text() == "a b yes /app 0\n"


def test_so_does_a_dockerfile_that_is_to_be_built(tmp_path, containers):
    task = tmp_path / "built"
    shutil.copytree(containers, task)
    (task / "environment" / "docker-compose.yaml").unlink()
    (task / "solution" / "solve.sh").write_text("#!/bin/bash\nexec echo periwinkle >/app/word\n")
    folder, reward = trial(tmp_path / "jobs", task, golden=DOCKER_GOLDEN, docker="true", user="nobody")
    assert reward == 0.0, "the folder is root's"
    assert (folder / "verifier" / "more" / "seen").read_text() == "a b yes /app 65534\n"
