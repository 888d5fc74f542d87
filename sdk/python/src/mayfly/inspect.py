"""Sandboxes for inspect_ai: ``--sandbox mayfly`` or ``--sandbox mayfly:GOLDEN``. Needs ``pip install mayfly[inspect]``.

Each sample has a session of its own, which is discarded with it, and with the process of the evaluation.
"""

from __future__ import annotations

import os
import posixpath
import shlex
from contextlib import aclosing
from typing import Any, Dict, List, Literal, Optional, Tuple, Union, overload

import anyio
import httpx
from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxConnection,
    SandboxEnvironment,
    SandboxEnvironmentConfigType,
    SandboxEnvironmentLimits,
    SandboxUnavailableError,
    SandboxUserUnsupportedError,
    sandboxenv,
)
from pydantic import BaseModel, ConfigDict, Field

from ._async import AsyncClient, AsyncSession
from ._core import MayflyError

#: Label of the sessions of evaluations, with the name of the task.
LABEL = "inspect_ai"
#: Bounds on the timeouts of the first and the second retry, in seconds.
RETRIES = (60, 30)
#: Longest time in seconds for the end of a session.
GOODBYE = 30
#: Words of the daemon for a session that is over, or that there is not.
GONE = frozenset({"session_gone", "no_such_session"})


class MayflySandboxConfig(BaseModel):
    """What a sample's session is, where that is not said by the name of a golden alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    golden: str = Field(default_factory=lambda: os.environ.get("MAYFLY_GOLDEN", "default"))
    """Name of the golden image; `default`, or what MAYFLY_GOLDEN says."""
    user: Optional[str] = None
    """User of commands and files, unless a command names another; the golden's own when absent."""
    working_dir: Optional[str] = None
    """Where relative paths begin; the user's home when absent. It is made when it is not there."""
    env: Dict[str, str] = Field(default_factory=dict)
    """Environment of all commands."""
    egress: Optional[Tuple[str, ...]] = None
    """Hosts that the session may reach; nothing when absent."""
    memory_mib: Optional[int] = None
    cpus: Optional[float] = None
    disk_mib: Optional[int] = None
    ttl: int = 24 * 3600
    """Longest life in seconds; the daemon's `max_ttl` bounds it."""
    deadline: float = 600
    """Longest wait for the session's turn, in seconds."""

    def __hash__(self) -> int:
        # inspect_ai keeps configurations in sets, and a dictionary has no hash.
        return hash(tuple((self.model_dump() | {"env": frozenset(self.env.items())}).values()))


@sandboxenv(name="mayfly")
class MayflySandboxEnvironment(SandboxEnvironment):
    """One session. The daemon is the one that MAYFLY_ADDRESS names, with the token in MAYFLY_TOKEN, or this host's."""

    def __init__(self, session: AsyncSession, user: Optional[str], working_dir: str) -> None:
        super().__init__()
        self.session, self.user, self.working_dir = session, user, working_dir

    @classmethod
    async def sample_init(
        cls, task_name: str, config: Optional[SandboxEnvironmentConfigType], metadata: Dict[str, str]
    ) -> Dict[str, SandboxEnvironment]:
        wanted = _config(config)
        client = AsyncClient(os.environ.get("MAYFLY_ADDRESS"), os.environ.get("MAYFLY_TOKEN"), retries=20)
        try:
            session = await client.create(
                wanted.golden, env=wanted.env, metadata={LABEL: task_name[:1024]}, memory_mib=wanted.memory_mib,
                cpus=wanted.cpus, disk_mib=wanted.disk_mib, egress=wanted.egress, ttl=wanted.ttl, idle_timeout=wanted.ttl,
                deadline=wanted.deadline, attach=True,
            )
            try:
                working_dir = await _working_dir(session, wanted)
            except BaseException:
                await _discard(session)
                raise
        except BaseException:
            with anyio.CancelScope(shield=True):
                await client.aclose()
            raise
        return {"default": cls(session, wanted.user, working_dir)}

    @classmethod
    async def sample_cleanup(
        cls, task_name: str, config: Optional[SandboxEnvironmentConfigType],
        environments: Dict[str, SandboxEnvironment], interrupted: bool,
    ) -> None:
        # Also when it was interrupted: that the process lives on would keep the session.
        for environment in environments.values():
            session = environment.as_type(MayflySandboxEnvironment).session
            await _discard(session)
            await session.client.aclose()

    @classmethod
    async def cli_cleanup(cls, id: Optional[str]) -> None:
        address, token = os.environ.get("MAYFLY_ADDRESS"), os.environ.get("MAYFLY_TOKEN")
        async with AsyncClient(address, token) as client:
            for session in await client.list():
                if LABEL in session.info.get("metadata", {}) and id in (None, session.id):
                    await session.kill()

    @classmethod
    def config_deserialize(cls, config: Dict[str, Any]) -> BaseModel:
        return MayflySandboxConfig(**config)

    async def exec(
        self, cmd: List[str], input: Union[str, bytes, None] = None, cwd: Optional[str] = None,
        env: Optional[Dict[str, str]] = None, user: Optional[str] = None, timeout: Optional[int] = None,
        timeout_retry: bool = True, concurrency: bool = True,
    ) -> ExecResult[str]:
        timeouts = [timeout]
        if timeout is not None and timeout_retry:
            timeouts += [min(timeout, most) for most in RETRIES]
        for left, limit in zip(reversed(range(len(timeouts))), timeouts):
            try:
                return await self._exec(cmd, input, cwd, env, user, limit)
            except TimeoutError:
                if not left:
                    raise
        raise AssertionError("unreachable")

    async def _exec(
        self, cmd: List[str], input: Union[str, bytes, None], cwd: Optional[str], env: Optional[Dict[str, str]],
        user: Optional[str], timeout: Optional[int],
    ) -> ExecResult[str]:
        limit = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE
        output = {"stdout": bytearray(), "stderr": bytearray()}
        outcome: Dict[str, Any] = {}
        running = self.session.stream(
            cmd, stdin=input, timeout=timeout, cwd=self._path(cwd or ""), env=env, user=user or self.user
        )
        try:
            async with aclosing(running) as events:
                async for kind, data in events:
                    if kind == "exit":
                        outcome = data
                        continue
                    kept = output[kind]
                    kept += data
                    if len(kept) > 2 * limit:
                        # The end of it is what counts.
                        del kept[:-limit]
        except MayflyError as error:
            return _not_run(error, cmd, user or self.user)
        except httpx.TransportError as error:
            raise SandboxUnavailableError(f"the session {self.session.id} cannot be asked: {error}") from error
        stdout, stderr = (bytes(kept[-limit:]).decode(errors="replace") for kept in output.values())
        if outcome.get("timed_out"):
            raise TimeoutError(f"{shlex.join(cmd)[:200]} did not end within {timeout} s")
        code = outcome.get("exit_code")
        returncode = code if code is not None else 128 + outcome["signal"]
        return ExecResult(returncode == 0, returncode, stdout, stderr)

    async def write_file(self, file: str, contents: Union[str, bytes]) -> None:
        data = contents.encode() if isinstance(contents, str) else contents
        try:
            await self.session.write_file(self._path(file), data, user=self.user, parents=True, in_place=True)
        except MayflyError as error:
            raise _file_error(error, file) from error

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> Union[str, bytes]:
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        try:
            content = await self.session.read_file(self._path(file), limit=limit, user=self.user)
        except ValueError:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None) from None
        except MayflyError as error:
            raise _file_error(error, file) from error
        return content.decode() if text else content

    async def connection(self, *, user: Optional[str] = None) -> SandboxConnection:
        if self.session.client.socket is None:
            raise NotImplementedError("a session of a daemon elsewhere has no command that connects to it")
        as_user = user or self.user
        option = f" -u {shlex.quote(as_user)}" if as_user else ""
        command = f"mayfly exec -it{option} -w {shlex.quote(self.working_dir)} {self.session.id} -- bash -l"
        return SandboxConnection(type="mayfly", command=command, container=self.session.id)

    def _path(self, path: str) -> str:
        return posixpath.join(self.working_dir, path)


def _config(config: Optional[SandboxEnvironmentConfigType]) -> MayflySandboxConfig:
    if config is None:
        return MayflySandboxConfig()
    if isinstance(config, MayflySandboxConfig):
        return config
    if isinstance(config, str):
        # inspect_ai takes it for a file, and puts the folder of the task before it.
        return MayflySandboxConfig(golden=posixpath.basename(config))
    raise TypeError(f"the sandbox `mayfly` takes the name of a golden or a MayflySandboxConfig, not {type(config).__name__}")


async def _working_dir(session: AsyncSession, wanted: MayflySandboxConfig) -> str:
    if wanted.working_dir is None:
        home = await session.exec(["pwd"], user=wanted.user)
        return home.check().stdout.decode().rstrip("\n")
    folder = posixpath.join("/", wanted.working_dir)
    (await session.exec(["mkdir", "-p", folder], cwd="/", user=wanted.user)).check()
    return folder


async def _discard(session: AsyncSession) -> None:
    with anyio.move_on_after(GOODBYE, shield=True):
        try:
            await session.kill()
        except (MayflyError, httpx.TransportError):
            # It is bound to this process's connection, and has its time to live.
            pass


def _not_run(error: MayflyError, cmd: List[str], user: Optional[str]) -> ExecResult[str]:
    """A command that was not started: as a result where a shell would have one."""
    if error.code in GONE or error.code == "connection_lost":
        raise SandboxUnavailableError(str(error)) from error
    if error.code == "no_such_user":
        raise SandboxUserUnsupportedError(str(error)) from error
    if error.code in ("not_permitted", "not_executable"):
        raise PermissionError(f"{cmd[0]}: {error}") from error
    if error.code == "not_found":
        return ExecResult(False, 127, "", f"{error.message}\n")
    if error.code in ("refused_by_guest", "not_a_directory"):
        return ExecResult(False, 126, "", f"{error.message}\n")
    raise error


def _file_error(error: MayflyError, file: str) -> Exception:
    words = {
        "not_found": (FileNotFoundError, "there is no such file"),
        "not_a_directory": (FileNotFoundError, "a part of its path is no directory"),
        "is_a_directory": (IsADirectoryError, "it is a directory"),
        "not_permitted": (PermissionError, "permission denied"),
    }
    if error.code in GONE:
        return SandboxUnavailableError(str(error))
    kind, why = words.get(error.code, (None, ""))
    return error if kind is None else kind(f"{file}: {why}")
