"""An image of Debian in the Docker of a session, made of packages: nothing is pulled."""

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

import mayfly

#: What this host has to have.
PROGRAMS = ("docker", "mmdebstrap")
PACKAGES = ("git", "patch", "python3-pytest")
MIRROR = "http://deb.debian.org/debian"
#: What no test reads.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def need_a_daemon():
    """Skips a module of tests where they cannot run, with the reason."""
    if not os.environ.get("MAYFLY_SOCKET"):
        pytest.skip("MAYFLY_SOCKET names no daemon", allow_module_level=True)
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"not root, or missing: {missing}", allow_module_level=True)


def session(client, **options):
    """A session with Docker, which ends with this process."""
    golden = os.environ.get("MAYFLY_DOCKER_GOLDEN", "default")
    return client.create(golden, ttl=3600, idle_timeout=3600, deadline=300, wait_docker=True, attach=True, **options)


@functools.cache
def archive() -> Path:
    """The image's files, made once in a run of tests."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    make = ["mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(PACKAGES)}"]
    make += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    subprocess.run([*make, "trixie", folder / "debian.tar", MIRROR], check=True)
    return folder / "debian.tar"


def load(session: mayfly.Session, tag: str, files: Path, command: str) -> None:
    """Loads it into a session's Docker, with the content of the folder ``files`` at /, where ``command`` is then run."""

    def docker(*args, **options):
        options.setdefault("env", {**os.environ, "DOCKER_HOST": session.docker_host})
        return subprocess.run(["docker", *args], check=True, stdout=subprocess.PIPE, **options).stdout.decode().strip()

    with archive().open("rb") as content:
        base = docker("import", "-", stdin=content)
    container = docker("create", base, "sh", "-euc", command)
    docker("cp", "-q", f"{files}/.", f"{container}:/")
    docker("start", "-a", container)
    docker("commit", container, tag)
    docker("rm", container)
