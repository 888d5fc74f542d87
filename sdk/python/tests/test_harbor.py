"""A Harbor trial in a session: skipped without Harbor, and unless MAYFLY_SOCKET names the socket of a daemon."""

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


def test_the_oracle_solves_its_task(tmp_path):
    harbor = Path(sys.executable).parent / "harbor"
    task = Path(__file__).parent / "harbor-task"
    command = [harbor, "run", "-p", task, "-a", "oracle", "--env", "mayfly.harbor:MayflyEnvironment"]
    command += ["--ek", f"golden={GOLDEN}", "-o", tmp_path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rewards = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    trials = [result for result in rewards if "verifier_result" in result]
    assert [trial["verifier_result"]["rewards"]["reward"] for trial in trials] == [1.0], rewards
