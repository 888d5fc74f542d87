"""SWE-ReX's Docker deployment, as it comes from PyPI, with the Docker of a session: skipped without swerex, and where
there is no daemon that publishes ports on 127.0.0.1, to which SWE-ReX connects."""

import subprocess
import sys
import tarfile

import pytest

swerex = pytest.importorskip("swerex")

from swerex.deployment.docker import DockerDeployment  # noqa: E402
from swerex.runtime.abstract import BashAction, Command, CreateBashSessionRequest  # noqa: E402

import debian_image  # noqa: E402
import mayfly  # noqa: E402

debian_image.need_a_daemon()

# The name that its tests have for their image.
IMAGE = "swe-rex-test:latest"
# What Debian's Python is.
WHEELS = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.13", "--abi=cp313", "--abi=abi3", "--abi=none"]
WHEELS += ["--platform=manylinux2014_x86_64", "--platform=any"]
SERVER = "#!/bin/sh\nexport PYTHONPATH=/opt/server\nexec python3 -m swerex.server \"$@\"\n"


def pip(*args):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *args], check=True)


@pytest.fixture(scope="module")
def docker_host(tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    pip("install", *WHEELS, "--target", files / "opt" / "server", f"swe-rex=={swerex.__version__}")
    server = files / "usr" / "local" / "bin" / "swerex-remote"
    server.parent.mkdir(parents=True)
    server.write_text(SERVER)
    server.chmod(0o755)
    with mayfly.Client() as client, debian_image.session(client, publish="127.0.0.1") as session:
        debian_image.load(session, IMAGE, files, "swerex-remote --version")
        yield session.docker_host


@pytest.fixture(autouse=True)
def host_of_docker(docker_host, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", docker_host)


def test_its_own_tests_of_the_deployment(tmp_path):
    pip("download", "--no-deps", "--no-binary=:all:", "--dest", tmp_path, f"swe-rex=={swerex.__version__}")
    [source] = tmp_path.glob("swe*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    [tests] = tmp_path.glob("swe*/tests/test_docker_deployment.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests.name]
    command += ["-k", "test_docker_deployment and not standalone"]
    done = subprocess.run(command, cwd=tests.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout


# It leaves the pipes of docker open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_shell_in_it():
    deployment = DockerDeployment(image=IMAGE)
    await deployment.start()
    try:
        runtime = deployment.runtime
        await runtime.create_session(CreateBashSessionRequest())
        await runtime.run_in_session(BashAction(command="cd /opt; PLACE=$PWD"))
        said = await runtime.run_in_session(BashAction(command="echo in $PLACE; (exit 3)", check="silent"))
        assert (said.output.strip(), said.exit_code) == ("in /opt", 3)
        done = await runtime.execute(Command(command=["cat", "/etc/debian_version"]))
        assert done.exit_code == 0 and done.stdout.strip()
    finally:
        await deployment.stop()
