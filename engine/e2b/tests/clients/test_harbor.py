"""A trial of stock Harbor in its E2B environment. The daemon is the one that E2B_API_URL names."""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def trial(folder, agent):
    harbor = Path(sys.executable).parent / "harbor"
    command = [harbor, "run", "-p", HERE / "harbor-task", "-a", agent, "-e", "e2b"]
    command += ["--ek", "prebuilt_template_id=base", "-o", folder]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [(path, json.loads(path.read_text())) for path in folder.rglob("result.json")]
    [(path, result)] = [(path, result) for path, result in results if "verifier_result" in result]
    assert result["exception_info"] is None, result
    return path.parent, result["verifier_result"]["rewards"]["reward"]


def test_the_oracle_is_rewarded_and_who_does_nothing_is_not(tmp_path):
    folder, reward = trial(tmp_path / "oracle", "oracle")
    assert reward == 1.0
    assert "name.txt" in (folder / "verifier" / "more" / "listing").read_text()
    assert trial(tmp_path / "nop", "nop")[1] == 0.0
