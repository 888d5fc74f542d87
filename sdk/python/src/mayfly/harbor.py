"""An environment for Harbor: ``--env mayfly.harbor:MayflyEnvironment --ek golden=GOLDEN``. Needs ``pip install mayfly[harbor]``.

With ``--ek docker=true``, and for tasks with a compose file, the task's images are built or pulled by the session's own
Docker, and commands run in its container `main`. Otherwise commands run in the session itself: a task's Dockerfile is not
built then, only its ``WORKDIR`` is kept, so the golden has to bring what the task needs. The session is discarded with
the trial, and with the process.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Union, override

import httpx
from harbor.environments.base import BaseEnvironment, ExecResult
from harbor.environments.capabilities import EnvironmentCapabilities, EnvironmentResourceCapabilities
from harbor.environments.compose_service_ops import ComposeServiceOpsMixin
from harbor.environments.definition import (
    effective_exec_cwd,
    parse_dockerfile_workdir,
    require_agent_environment_definition,
)
from harbor.environments.options import EnvironmentOptions
from harbor.environments.tar_transfer import pack_dir_to_bytes
from harbor.models.task.config import NetworkMode, NetworkPolicy
from harbor.models.trial.config import ResourceMode
from pydantic import Field

from ._async import AsyncClient, AsyncSession
from ._core import MayflyError
from ._harbor_compose import Compose

#: Bytes of each of a command's streams that are kept, from their end.
MAX_OUTPUT = 16 << 20


class MayflyOptions(EnvironmentOptions):
    """What ``--ek NAME=VALUE`` may say."""

    golden: str = Field(
        default_factory=lambda: os.environ.get("MAYFLY_GOLDEN", "default"), description="Golden image of the session."
    )
    address: Optional[str] = Field(default=None, description="Daemon, as MAYFLY_ADDRESS names it; this host's by default.")
    docker: Optional[bool] = Field(
        default=None,
        description="Run the task's containers in the session's Docker. By default for tasks with a compose file.",
    )
    user: Optional[str] = Field(
        default=None, description="User of commands that name none; root by default, or the user of the task's container."
    )
    ttl: int = Field(default=24 * 3600, description="Longest life of the session in seconds.")
    deadline: float = Field(default=600, description="Longest wait for the session's turn in seconds.")


class MayflyEnvironment(ComposeServiceOpsMixin, BaseEnvironment):
    """One session of a golden image."""

    options_model = MayflyOptions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._compose = Compose(self) if self._in_docker else None
        self._client: Optional[AsyncClient] = None
        self._session: Optional[AsyncSession] = None
        self._workdir = parse_dockerfile_workdir(self.environment_dir / "Dockerfile")

    @staticmethod
    @override
    def type() -> str:
        return "mayfly"

    @property
    @override
    def capabilities(self) -> EnvironmentCapabilities:
        return EnvironmentCapabilities(
            disable_internet=True, network_allowlist=True, network_allowlist_hostnames=True,
            network_allowlist_wildcard_hostnames=True, network_allowlist_ipv4_addresses=True,
            network_allowlist_ipv6_addresses=True, network_allowlist_ipv4_cidrs=True, network_allowlist_ipv6_cidrs=True,
            dynamic_network_policy=True, docker_compose=True,
        )

    @property
    def _in_docker(self) -> bool:
        wanted = self._options.docker
        return self._uses_compose if wanted is None else wanted

    @property
    @override
    def _uses_compose(self) -> bool:
        return Compose.has_file(self.environment_dir) or bool(self.extra_docker_compose_paths)

    @property
    def _options(self) -> MayflyOptions:
        assert isinstance(self.options, MayflyOptions)
        return self.options

    @classmethod
    @override
    def resource_capabilities(cls) -> EnvironmentResourceCapabilities:
        return EnvironmentResourceCapabilities(cpu_limit=True, fractional_cpus=True)

    @override
    def _validate_definition(self) -> None:
        require_agent_environment_definition(
            self.environment_dir, docker_image=self.task_env_config.docker_image,
            extra_docker_compose_paths=self.extra_docker_compose_paths,
        )
        if self._uses_compose and not self._in_docker:
            raise ValueError("the task has a compose file, which is for the session's Docker: leave out docker=false")

    @override
    async def start(self, force_build: bool) -> None:
        options, compose = self._options, self._compose
        address = options.address or os.environ.get("MAYFLY_ADDRESS")
        self._client = AsyncClient(address, os.environ.get("MAYFLY_TOKEN"), retries=20)
        try:
            self._session = await self._client.create(
                options.golden, env=None if compose else self._startup_env(), metadata={"harbor": self.session_id[:1024]},
                # Memory and disk are what the golden has: a bound below that would end the session.
                cpus=self._resource_limit_value("cpu", auto_mode=ResourceMode.LIMIT), ttl=options.ttl,
                idle_timeout=options.ttl, deadline=options.deadline, wait_docker=compose is not None, attach=True,
            )
            if compose:
                # Images are made and pulled with what a host has, as the policy is of the trial.
                public = NetworkPolicy(network_mode=NetworkMode.PUBLIC)
                await self._apply_network_policy(public)
                await compose.prepare(force_build)
                if self._network_policy != public:
                    await self._apply_network_policy(self._network_policy)
                await compose.up()
                await self._upload_environment_dir_after_start()
                await self.ensure_dirs(self._mount_targets(writable_only=True))
                return
            await self._apply_network_policy(self._network_policy)
            workdir = effective_exec_cwd(None, self.task_env_config.workdir, self._workdir)
            if workdir:
                # Before any command, which begins there.
                await self._running.mkdir(workdir, parents=True)
            await self.ensure_dirs(self._mount_targets(writable_only=True))
            await self._upload_environment_dir_after_start()
        except BaseException:
            await asyncio.shield(self.stop(True))
            raise

    @override
    async def stop(self, delete: bool) -> None:
        # A session is never kept: it is of one trial.
        session, client, self._session, self._client = self._session, self._client, None, None
        try:
            if session is not None:
                await session.kill()
        except (MayflyError, httpx.TransportError) as error:
            self.logger.warning(f"The session was not discarded; it ends with this process: {error}")
        finally:
            if client is not None:
                await client.aclose()

    @override
    async def _apply_network_policy(self, network_policy: NetworkPolicy) -> None:
        if network_policy.network_mode == NetworkMode.NO_NETWORK:
            await self._running.set_egress(None)
        elif network_policy.network_mode == NetworkMode.ALLOWLIST:
            # By name alone a host would be reached on the ports of HTTP.
            entries = [f"[{host}]:*" if ":" in host else f"{host}:*" for host in network_policy.allowed_hosts]
            await self._running.set_egress(entries)
        else:
            try:
                await self._running.set_egress(["*"])
            except MayflyError as error:
                if error.status != 422:
                    raise
                self.logger.warning(f"The session has no network: {error.message}")

    @override
    async def upload_file(self, source_path: Union[Path, str], target_path: str) -> None:
        if self._compose:
            await self._compose.upload_file(source_path, target_path)
        else:
            await self._send_file(source_path, target_path)

    @override
    async def upload_dir(self, source_dir: Union[Path, str], target_dir: str) -> None:
        if self._compose:
            await self._compose.upload_dir(source_dir, target_dir)
        else:
            await self._send_dir(source_dir, target_dir)

    @override
    async def download_file(self, source_path: str, target_path: Union[Path, str]) -> None:
        if self._compose:
            await self._compose.download_file(source_path, target_path)
        else:
            await self._fetch_file(source_path, target_path)

    @override
    async def download_dir(self, source_dir: str, target_dir: Union[Path, str]) -> None:
        if self._compose:
            await self._compose.download_dir(source_dir, target_dir)
        else:
            await self._fetch_dir(source_dir, target_dir)

    @override
    async def exec(
        self, command: str, cwd: Optional[str] = None, env: Optional[Dict[str, str]] = None,
        timeout_sec: Optional[int] = None, user: Union[str, int, None] = None,
    ) -> ExecResult:
        resolved = self._resolve_user(user)
        if resolved is None:
            resolved = self._options.user
        env = self._merge_env(env)
        if self._compose:
            cwd = cwd or self.task_env_config.workdir
            return await self._compose.exec(command, cwd=cwd, env=env, timeout_sec=timeout_sec, user=resolved)
        cwd = effective_exec_cwd(cwd, self.task_env_config.workdir, self._workdir)
        user = "root" if resolved is None else str(resolved)
        return await self._run(["bash", "-c", command], timeout_sec, cwd=cwd, env=env, user=user)

    @override
    def _compose_service_transport(self, service: Optional[str]) -> Compose:
        if self._compose is None:
            raise self._compose_unsupported(service)
        return self._compose

    # Of the session itself.

    async def _send_file(self, source_path: Union[Path, str], target_path: str) -> None:
        source = Path(source_path)
        mode = stat.S_IMODE(source.stat().st_mode)
        folder = posixpath.dirname(target_path)
        if folder:
            await self._running.mkdir(folder, parents=True)
        await self._running.write_file(target_path, await asyncio.to_thread(source.read_bytes), mode=mode)

    async def _send_dir(self, source_dir: Union[Path, str], target_dir: str) -> None:
        archive = await asyncio.to_thread(pack_dir_to_bytes, source_dir, compress=False, include_root=False)
        await self._running.mkdir(target_dir, parents=True)
        await self._running.put_tar(target_dir, archive)

    async def _fetch_file(self, source_path: str, target_path: Union[Path, str]) -> None:
        content = await self._running.read_file(source_path, limit=1 << 30)
        await asyncio.to_thread(Path(target_path).write_bytes, content)

    async def _fetch_dir(self, source_dir: str, target_dir: Union[Path, str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "download.tar"
            with path.open("wb") as archive:
                async for piece in self._running.get_tar(source_dir):
                    archive.write(piece)
            await asyncio.to_thread(_unpack, path, target_dir)

    async def _run(
        self, argv: List[str], timeout_sec: Optional[int], *, cwd: Optional[str], user: str,
        env: Optional[Dict[str, str]] = None, quiet: bool = False,
    ) -> ExecResult:
        report = None if quiet else self._output_callback()
        output: Dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        outcome: Dict[str, Any] = {}
        running = self._running.stream(argv, timeout=timeout_sec, cwd=cwd, env=env, user=user)
        try:
            async for kind, data in running:
                if kind == "exit":
                    outcome = data
                    break
                kept = output[kind]
                kept += data
                if len(kept) > 2 * MAX_OUTPUT:
                    del kept[:-MAX_OUTPUT]
                if report is not None:
                    await report(data.decode(errors="replace"), "stdout" if kind == "stdout" else "stderr")
        finally:
            await running.aclose()
        if outcome.get("timed_out"):
            raise RuntimeError(f"Command timed out after {timeout_sec} seconds")
        code = outcome.get("exit_code")
        texts: List[str] = [bytes(kept[-MAX_OUTPUT:]).decode(errors="replace") for kept in output.values()]
        return ExecResult(
            stdout=texts[0], stderr=texts[1], return_code=code if code is not None else 128 + outcome["signal"]
        )

    @override
    async def attach(self) -> None:
        shell = self._compose.shell() if self._compose else ["bash", "-l"]
        command = ["mayfly", "exec", "-it", self._running.id, "--", *shell]
        os.execvp(command[0], command)

    @property
    def _running(self) -> AsyncSession:
        if self._session is None:
            raise RuntimeError("the environment was not started")
        return self._session


def _unpack(path: Path, target: Union[Path, str]) -> None:
    """The content of a folder whose archive this is. What could leave the target is left out, as Harbor does."""
    with tarfile.open(path) as archive:
        for member in archive:
            # All names begin with the folder's own.
            name = member.name.partition("/")[2]
            if not name:
                continue
            link = member.linkname.partition("/")[2] if member.islnk() else member.linkname
            try:
                archive.extract(member.replace(name=name, linkname=link, deep=False), target, filter="data")
            except tarfile.FilterError:
                continue
