"""A sandbox provider for NeMo Gym, by the name ``mayfly``. Needs ``pip install mayfly[nemo-gym]``.

Commands run in a session of a golden image: the one that ``image`` of the specification names, or the provider's own.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
from pathlib import Path
from typing import Dict, Optional, Union

import httpx
from nemo_gym.sandbox.providers.base import (
    SandboxCreateError,
    SandboxExecResult,
    SandboxHandle,
    SandboxSpec,
    SandboxStatus,
)

from ._async import AsyncClient, AsyncSession
from ._core import MayflyError, Result

#: Names of ``provider_options``, beside those of the specification itself.
OPTIONS = frozenset({"golden", "user", "egress", "egress_deny", "wait_docker", "publish"})


class MayflyProvider:
    """Sessions of one daemon. ``goldens`` gives goldens for names of images; others count as goldens by themselves."""

    name = "mayfly"

    def __init__(
        self, address: Optional[str] = None, token: Optional[str] = None, golden: str = "default",
        goldens: Optional[Dict[str, str]] = None, ttl_s: int = 24 * 3600, ready_timeout_s: float = 600,
    ) -> None:
        address, token = address or os.environ.get("MAYFLY_ADDRESS"), token or os.environ.get("MAYFLY_TOKEN")
        self._client = AsyncClient(address, token, retries=20)
        self._golden, self._goldens = golden, dict(goldens or {})
        self._ttl, self._ready_timeout = ttl_s, ready_timeout_s

    async def create(self, spec: SandboxSpec) -> SandboxHandle:
        options = dict(spec.provider_options)
        unknown = set(options) - OPTIONS
        if unknown:
            raise SandboxCreateError(f"mayfly knows no provider_options {sorted(unknown)}; there are {sorted(OPTIONS)}")
        if spec.entrypoint:
            raise SandboxCreateError("a session has no entrypoint: run it as a command")
        golden = options.pop("golden", None) or self._golden_of(spec.image)
        user = options.pop("user", None)
        ttl = int(spec.ttl_s or self._ttl)
        resources = spec.resources
        if resources.gpu:
            raise SandboxCreateError("a session has no GPU")
        try:
            session = await self._client.create(
                golden, env=spec.env, metadata=spec.metadata, cpus=resources.cpu, memory_mib=resources.memory_mib,
                disk_mib=None if resources.disk_gib is None else resources.disk_gib * 1024, ttl=ttl, idle_timeout=ttl,
                deadline=float(spec.ready_timeout_s or self._ready_timeout), attach=True, **options,
            )
        except (MayflyError, httpx.TransportError) as error:
            raise SandboxCreateError(f"no session of the golden {golden!r}: {error}") from error
        handle = SandboxHandle(session.id, self.name, (session, spec.workdir, user))
        try:
            if spec.workdir:
                await session.mkdir(spec.workdir, parents=True)
            for path, content in spec.files.items():
                await self._write(session, path, content.encode())
        except BaseException:
            await asyncio.shield(session.kill())
            raise
        return handle

    async def exec(
        self, handle: SandboxHandle, command: str, *, cwd: Optional[str] = None, env: Optional[Dict[str, str]] = None,
        timeout_s: Union[int, float, None] = None, user: Union[str, int, None] = None,
    ) -> SandboxExecResult:
        session, workdir, own = handle.raw
        as_user = own if user is None else str(user)
        try:
            result: Result = await session.exec(
                ["bash", "-c", command], timeout=timeout_s, cwd=cwd or workdir, env=env, user=as_user
            )
        except MayflyError as error:
            return SandboxExecResult(None, error.message, 126, error_type=error.code)
        except httpx.TransportError as error:
            return SandboxExecResult(None, str(error), -1, error_type=type(error).__name__)
        text = [stream.decode(errors="replace") for stream in (result.stdout, result.stderr)]
        return SandboxExecResult(*text, result.returncode, error_type="timeout" if result.timed_out else None)

    async def upload_file(self, handle: SandboxHandle, source_path: Path, target_path: str) -> None:
        source = Path(source_path)
        content = await asyncio.to_thread(source.read_bytes)
        await self._write(handle.raw[0], target_path, content, stat.S_IMODE(source.stat().st_mode))

    async def download_file(self, handle: SandboxHandle, source_path: str, target_path: Path) -> None:
        content = await handle.raw[0].read_file(source_path, limit=1 << 30)
        await asyncio.to_thread(_save, Path(target_path), content)

    async def status(self, handle: SandboxHandle) -> SandboxStatus:
        try:
            info = (await handle.raw[0].refresh()).info
        except MayflyError as error:
            gone = error.code in ("session_gone", "no_such_session")
            return SandboxStatus.STOPPED if gone else SandboxStatus.UNKNOWN
        except httpx.TransportError:
            return SandboxStatus.UNKNOWN
        return SandboxStatus.RUNNING if info["state"] == "running" else SandboxStatus.ERROR

    async def close(self, handle: SandboxHandle) -> None:
        await handle.raw[0].kill()

    async def aclose(self) -> None:
        await self._client.aclose()

    def _golden_of(self, image: Optional[str]) -> str:
        return self._golden if image is None else self._goldens.get(image, image)

    async def _write(self, session: AsyncSession, path: str, content: bytes, mode: Optional[int] = None) -> None:
        folder = posixpath.dirname(path)
        if folder not in ("", "/"):
            await session.mkdir(folder, parents=True)
        await session.write_file(path, content, mode=mode)


def _save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
