"""SWE-bench's own evaluation, as it comes from PyPI, in the Docker of a session: skipped without swebench, and where
there is no daemon. The instances are of a repository that the test makes, as the images of the real ones are pulled."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("swebench")

import mayfly  # noqa: E402

import debian_image  # noqa: E402

debian_image.need_a_daemon()

IMAGE = "swe-bench-of-a-test:latest"
CODE = "def middle(numbers):\n    return sorted(numbers)[len(numbers) // 2]\n"
TESTS = "from numbers_of import middle\n\n\ndef test_odd():\n    assert middle([3, 1, 2]) == 2\n"
# What the instance's tests are before its own are applied, and with them.
TEST_PATCH = """\
diff --git a/test_middle.py b/test_middle.py
--- a/test_middle.py
+++ b/test_middle.py
@@ -3,3 +3,7 @@ from numbers_of import middle
 
 def test_odd():
     assert middle([3, 1, 2]) == 2
+
+
+def test_even():
+    assert middle([4, 1, 2, 3]) == 2.5
"""
HEAD = """\
diff --git a/numbers_of.py b/numbers_of.py
--- a/numbers_of.py
+++ b/numbers_of.py
@@ -1,2 +1,3 @@
"""
GOLD = HEAD + """\
 def middle(numbers):
-    return sorted(numbers)[len(numbers) // 2]
+    ordered, half = sorted(numbers), len(numbers) // 2
+    return (ordered[half] + ordered[~half]) / 2
"""
# It makes the new test pass, and the old one fail.
BREAKS = HEAD + """\
 def middle(numbers):
-    return sorted(numbers)[len(numbers) // 2]
+    ordered, half = sorted(numbers), len(numbers) // 2
+    return (ordered[half] + ordered[half - 1]) / 2
"""
# It applies, and changes nothing that counts.
IDLE = HEAD + """\
 def middle(numbers):
+    numbers = list(numbers)
     return sorted(numbers)[len(numbers) // 2]
"""
# Its context is not there.
STRAY = HEAD + """\
 def median(figures):
-    raise NotImplementedError
+    figures.sort()
+    return figures[0]
"""
SCRIPT = f"""\
#!/bin/bash
set -uxo pipefail
cd /testbed
git apply -v - <<'END_OF_PATCH'
{TEST_PATCH}END_OF_PATCH
: '>>>>> Start Test Output'
python3 -m pytest -rA -p no:cacheprovider test_middle.py
: '>>>>> End Test Output'
git checkout -- test_middle.py
"""


def instance(number):
    return {
        "instance_id": f"test__middle-{number}", "image": IMAGE, "repo": "test/middle", "version": "1", "patch": GOLD,
        "FAIL_TO_PASS": ["test_middle.py::test_even"], "PASS_TO_PASS": ["test_middle.py::test_odd"],
        "log_parser": "parse_log_pytest", "eval_type": "pass_and_fail", "eval_script": SCRIPT,
    }


@pytest.fixture(scope="module")
def docker_host(tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    (files / "testbed").mkdir()
    (files / "testbed" / "numbers_of.py").write_text(CODE)
    (files / "testbed" / "test_middle.py").write_text(TESTS)
    commit = "cd /testbed; chown -R 0:0 .; git init -q; git add .; git -c user.name=t -c user.email=t@test commit -qm first"
    with mayfly.Client() as client, debian_image.session(client) as session:
        debian_image.load(session, IMAGE, files, commit)
        yield session.docker_host


def evaluate(folder, docker_host, run, instances, predictions):
    """What swebench's report says of predictions, of which there may be none: those of the instances then."""
    (folder / "instances.json").write_text(json.dumps(instances))
    said = "gold"
    if predictions is not None:
        said = "predictions.json"
        (folder / said).write_text(json.dumps([
            {"instance_id": one["instance_id"], "model_name_or_path": "model", "model_patch": patch}
            for one, patch in zip(instances, predictions)
        ]))
    command = [sys.executable, "-m", "swebench.harness.run_evaluation", "-d", "instances.json", "-p", said, "-id", run]
    environment = {**os.environ, "DOCKER_HOST": docker_host, "SWEBENCH_DOCKER_POOL_SIZE": "32"}
    done = subprocess.run([*command, "--max_workers", "3"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [report] = folder.glob(f"*.{run}.json")
    return json.loads(report.read_text()), done.stdout


def ids(instances):
    return [one["instance_id"] for one in instances]


def test_the_right_patch_resolves_it(tmp_path, docker_host):
    instances = [instance(1)]
    report, said = evaluate(tmp_path, docker_host, "right", instances, None)
    assert report["resolved_ids"] == ids(instances), said
    assert report["unstopped_containers"] == [] and report["error_ids"] == []


def test_other_patches_do_not(tmp_path, docker_host):
    instances = [instance(number) for number in range(1, 4)]
    report, said = evaluate(tmp_path, docker_host, "wrong", instances, [BREAKS, IDLE, STRAY])
    assert report["resolved_ids"] == [], said
    assert report["unresolved_ids"] == ids(instances)[:2] and report["error_ids"] == ids(instances)[2:]
    assert report["infra_failure_ids"] == [] and report["unstopped_containers"] == []
    found = {}
    for path in tmp_path.rglob("report.json"):
        for name, one in json.loads(path.read_text()).items():
            tests = one["tests_status"]
            found[name] = [test for kind in tests.values() for test in kind["failure"]]
    assert found == {
        "test__middle-1": ["test_middle.py::test_odd"],
        "test__middle-2": ["test_middle.py::test_even"],
    }
