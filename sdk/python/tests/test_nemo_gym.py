"""NeMo Gym's provider: skipped without it, and unless MAYFLY_SOCKET names the socket of a daemon."""

import os

import pytest

pytest.importorskip("nemo_gym")
if not os.environ.get("MAYFLY_SOCKET"):
    pytest.skip("MAYFLY_SOCKET names no daemon", allow_module_level=True)

from nemo_gym.sandbox.providers.base import SandboxCreateError, SandboxSpec, SandboxStatus  # noqa: E402
from nemo_gym.sandbox.providers.registry import create_provider  # noqa: E402

GOLDEN = os.environ.get("MAYFLY_GOLDEN", "default")


async def test_a_sandbox_from_its_beginning_to_its_end(tmp_path):
    provider = create_provider({"mayfly": {"golden": "none-such", "goldens": {"python:3.12": GOLDEN}}})
    try:
        spec = SandboxSpec(image="python:3.12", workdir="/work", env={"A": "b"}, files={"/work/sub/file": "content"})
        handle = await provider.create(spec)
        assert await provider.status(handle) == SandboxStatus.RUNNING
        result = await provider.exec(handle, "pwd; cat sub/file; echo $A$B; exit 3", env={"B": "c"})
        assert (result.stdout, result.return_code, result.error_type) == ("/work\ncontentbc\n", 3, None)
        slow = await provider.exec(handle, "sleep 600", timeout_s=0.5)
        assert (slow.return_code, slow.error_type) == (124, "timeout")
        script = tmp_path / "script"
        script.write_text("#!/bin/sh\necho ran\n")
        script.chmod(0o755)
        await provider.upload_file(handle, script, "/opt/new/script")
        assert (await provider.exec(handle, "/opt/new/script")).stdout == "ran\n"
        await provider.download_file(handle, "/work/sub/file", tmp_path / "a" / "file")
        assert (tmp_path / "a" / "file").read_text() == "content"
        await provider.close(handle)
        assert await provider.status(handle) == SandboxStatus.STOPPED
        with pytest.raises(SandboxCreateError):
            await provider.create(SandboxSpec())
    finally:
        await provider.aclose()
