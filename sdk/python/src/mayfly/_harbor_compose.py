"""A Harbor task's containers in the Docker of a session, as Harbor's own environment `docker` has them on its host."""

from __future__ import annotations

import asyncio
import posixpath
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union, override

from harbor.constants import MAIN_SERVICE_NAME
from harbor.environments.base import ExecResult
from harbor.environments.definition import COMPOSE_FILE_NAME, should_use_prebuilt_docker_image
from harbor.environments.dind_compose import DinDComposeOps
from harbor.environments.docker import (
    COMPOSE_BUILD_PATH,
    COMPOSE_PREBUILT_PATH,
    ENV_COMPOSE_NAME,
    self_bind_mount,
    write_mounts_compose_file,
)
from harbor.environments.docker.compose_env import ComposeInfraEnvVars, legacy_log_mount_env_vars, merge_compose_env
from harbor.models.trial.config import ServiceVolumeConfig

#: Folders of the session.
ENVIRONMENT = "/harbor/environment"
GENERATED = "/harbor/compose"
MOUNTS = "docker-compose-mounts.json"
#: Containers of one project: there is no other one in a session.
PROJECT = "harbor"
#: Longest time of a copy between the session and a container, in seconds.
COPY = 600


class Compose(DinDComposeOps):
    """The project of one trial. ``env`` is the environment, which knows the session."""

    # Folders of logs are the session's own, so that their content need not leave a container first.
    _SELF_BIND_LOG_DIRS = True
    # The image's PATH stays.
    _MAIN_LOGIN_SHELL = False
    _CP_FILE_TIMEOUT_SEC = COPY
    _CP_DIR_TIMEOUT_SEC = COPY

    def __init__(self, env: Any) -> None:
        self._env = env
        self._prebuilt = False
        self._processors: Optional[int] = None
        self._containers: Dict[str, str] = {}

    async def prepare(self, force_build: bool) -> None:
        """Brings the task's files into the session, makes or pulls its images, and makes its containers."""
        env = self._env
        self._prebuilt = should_use_prebuilt_docker_image(
            env.environment_dir, docker_image=env.task_env_config.docker_image, force_build=force_build
        )
        count = await self._host("nproc")
        self._processors = int(count.stdout or 1)
        if env.environment_dir.is_dir():
            await self._stage_dir_to_host(env.environment_dir, ENVIRONMENT)
        await self._host(f"mkdir -p {ENVIRONMENT}")
        for source, target in self._extra_files():
            await self._stage_file_to_host(source, target)
        base = self._base_path()
        await self._stage_file_to_host(base, f"{GENERATED}/{base.name}")
        mounts = self._mounts()
        with tempfile.TemporaryDirectory() as folder:
            path = await asyncio.to_thread(write_mounts_compose_file, Path(folder) / MOUNTS, mounts)
            await self._stage_file_to_host(path, f"{GENERATED}/{MOUNTS}")
        await self._stage_env_compose_file(GENERATED)
        bound = [shlex.quote(mount["source"]) for mount in mounts if mount.get("type") == "bind"]
        if bound:
            await self._host(f"mkdir -p {' '.join(bound)} && chmod 777 {' '.join(bound)}")
        if not self._prebuilt:
            await self._compose("build")
        # Images that are not there are pulled.
        await self._compose("create")

    async def up(self) -> None:
        """Starts the containers, and waits until they are healthy."""
        await self._compose("up", "--detach", "--wait")

    def command(self, *args: str) -> List[str]:
        """The compose command with the files of the project."""
        files = [f"{GENERATED}/{self._base_path().name}"]
        if self.has_file(self._env.environment_dir):
            files.append(f"{ENVIRONMENT}/{COMPOSE_FILE_NAME}")
        files += [target for _, target in self._extra_files()]
        # The last ones win: logs are where downloads look for them.
        files += [f"{GENERATED}/{ENV_COMPOSE_NAME}", f"{GENERATED}/{MOUNTS}"]
        options = [option for file in files for option in ("-f", file)]
        return ["docker", "compose", "-p", PROJECT, "--project-directory", ENVIRONMENT, *options, *args]

    @staticmethod
    def has_file(environment_dir: Path) -> bool:
        return (environment_dir / COMPOSE_FILE_NAME).exists()

    async def _compose(self, *args: str) -> None:
        limit = round(self._env.task_env_config.build_timeout_sec)
        self._check(f"docker compose {args[0]}", await self._compose_exec(list(args), limit))

    async def _container(self, service: str) -> str:
        """The id of a service's container, which stays the same."""
        if service not in self._containers:
            said = self._check("docker compose ps", await self._compose_exec(["ps", "--all", "--quiet", service], COPY))
            ids = (said.stdout or "").split()
            if not ids:
                raise RuntimeError(f"there is no container of the service {service!r}")
            self._containers[service] = ids[0]
        return self._containers[service]

    async def _host(self, command: str) -> ExecResult:
        return self._check(command, await self._host_exec(command, COPY))

    @staticmethod
    def _check(what: str, result: ExecResult) -> ExecResult:
        if result.return_code != 0:
            raise RuntimeError(f"{what} failed: {(result.stdout or '')[-4000:]}{(result.stderr or '')[-4000:]}")
        return result

    def _base_path(self) -> Path:
        return COMPOSE_PREBUILT_PATH if self._prebuilt else COMPOSE_BUILD_PATH

    def _extra_files(self) -> List[Tuple[Path, str]]:
        paths = self._env.extra_docker_compose_paths
        return [(path, f"{GENERATED}/docker-compose-extra-{number}.yaml") for number, path in enumerate(paths)]

    def _mounts(self) -> List[ServiceVolumeConfig]:
        # Of this machine there is nothing in the session: what is bound is the session's folder of the same name.
        return [self_bind_mount(mount) if mount.get("type") == "bind" else mount for mount in self._env._mounts]

    def _variables(self) -> Dict[str, str]:
        env = self._env
        wanted, memory = env._effective_cpus, env._effective_memory_mb
        infra = ComposeInfraEnvVars(
            main_image_name=f"hb__{re.sub('[^a-z0-9_.-]', '-', env.environment_name.lower())}", context_dir=ENVIRONMENT,
            prebuilt_image_name=env.task_env_config.docker_image if self._prebuilt else None,
            # Docker refuses more than there are.
            cpus=min(wanted, self._processors) if wanted and self._processors else wanted,
            memory=f"{memory}M" if memory else None,
        ).to_env_dict()
        infra.update(legacy_log_mount_env_vars(self._mounts(), host_value="target"))
        return merge_compose_env(user_env=env._startup_env(), infra_env=infra, logger=env.logger)

    @override
    async def upload_file(self, source_path: Union[Path, str], target_path: str) -> None:
        await self._make(posixpath.dirname(target_path))
        await super().upload_file(source_path, target_path)

    @override
    async def upload_dir(self, source_dir: Union[Path, str], target_dir: str) -> None:
        await self._make(target_dir)
        await super().upload_dir(source_dir, target_dir)

    async def _make(self, folder: str) -> None:
        """Makes a folder in the main container; docker copies only into one that is there."""
        if folder not in ("", "/"):
            made = await self.exec(f"mkdir -p {shlex.quote(folder)}", timeout_sec=COPY, user="root")
            self._check(f"mkdir {folder}", made)

    # What DinDComposeOps is made of.

    @override
    async def exec(
        self, command: str, cwd: Optional[str] = None, env: Optional[Dict[str, str]] = None,
        timeout_sec: Optional[int] = None, user: Union[str, int, None] = None, *, service: Optional[str] = None,
    ) -> ExecResult:
        # By docker itself: compose reads all files again for each command, which takes seconds without KVM.
        options = [option for name, value in (env or {}).items() for option in ("-e", f"{name}={value}")]
        options += ["-w", cwd] if cwd else []
        options += ["-u", str(user)] if user is not None else []
        main = self._env.is_main_service(service)
        container = await self._container(MAIN_SERVICE_NAME if service is None else service)
        # Only of the main image it is known that it has bash.
        argv = ["docker", "exec", *options, container, "bash" if main else "sh", "-c", command]
        return await self._env._run(argv, timeout_sec, cwd="/", user="root")

    @override
    async def _compose_exec(self, subcommand: List[str], timeout_sec: Optional[int] = None) -> ExecResult:
        argv, env = self.command(*subcommand), self._variables()
        if subcommand[0] == "cp":
            argv, env = ["docker", "cp", "-q", *[await self._place(path) for path in subcommand[1:]]], {}
        return await self._env._run(argv, timeout_sec, cwd="/", env=env, user="root", quiet=True)

    async def _place(self, path: str) -> str:
        """A path of the session, or `SERVICE:PATH` as docker has it."""
        service, colon, rest = path.partition(":")
        return f"{await self._container(service)}:{rest}" if colon and "/" not in service else path

    @override
    async def _host_exec(self, command: str, timeout_sec: Optional[int] = None) -> ExecResult:
        return await self._env._run(["sh", "-c", command], timeout_sec, cwd="/", user="root", quiet=True)

    @override
    async def _stage_file_to_host(self, source_path: Union[Path, str], host_path: str) -> None:
        await self._env._send_file(source_path, host_path)

    @override
    async def _stage_dir_to_host(self, source_dir: Union[Path, str], host_dir: str) -> None:
        await self._env._send_dir(source_dir, host_dir)

    @override
    async def _fetch_file_from_host(self, host_path: str, target_path: Union[Path, str]) -> None:
        await self._env._fetch_file(host_path, target_path)

    @override
    async def _fetch_dir_from_host(self, host_dir: str, target_dir: Union[Path, str]) -> None:
        await self._env._fetch_dir(host_dir, target_dir)

    def shell(self) -> List[str]:
        """A command of the session that opens a shell in the main container."""
        return self.command("exec", MAIN_SERVICE_NAME, "bash")
