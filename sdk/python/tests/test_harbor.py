"""Harbor trials in sessions: skipped without Harbor, and unless MAYFLY_SOCKET names the socket of a daemon."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("harbor")
if not os.environ.get("MAYFLY_SOCKET"):
    pytest.skip("MAYFLY_SOCKET names no daemon", allow_module_level=True)

GOLDEN = os.environ.get("MAYFLY_GOLDEN", "default")
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
