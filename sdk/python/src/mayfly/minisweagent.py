"""An environment for mini-swe-agent: ``environment_class: mayfly.minisweagent.MayflyEnvironment``. Needs
``pip install mayfly[mini-swe-agent]``.

Commands run in a session of a golden image or, with ``image``, in a container of the session's own Docker.
"""

from __future__ import annotations

import os
import platform
from typing import Any, Dict, List, Optional

import httpx
from minisweagent.exceptions import Submitted
from minisweagent.utils.serialize import recursive_merge
from pydantic import BaseModel

from ._core import MayflyError
from ._sync import Client, Session

#: Bytes of a command's output that are kept, from its end.
MAX_OUTPUT = 16 << 20


class MayflyEnvironmentConfig(BaseModel):
    """Keys below ``environment`` of mini-swe-agent's configuration."""

    golden: str = os.environ.get("MAYFLY_GOLDEN", "default")
    """Golden image of the session."""
    image: Optional[str] = None
    """Docker image that the golden, or a pull, has; commands run in a container of it."""
    cwd: str = ""
    """Working directory of commands; the home in the session, or the image's own, when empty."""
    user: Optional[str] = None
    env: Dict[str, str] = {}
    forward_env: List[str] = []
    """Variables of this process that commands have as well; those in `env` win."""
    timeout: int = 30
    """Longest time of a command in seconds."""
    interpreter: List[str] = ["bash", "-lc"]
    """What a command is given to."""
    egress: Optional[List[str]] = None
    """Hosts that the session may reach."""
    memory_mib: Optional[int] = None
    cpus: Optional[float] = None
    ttl: int = 2 * 3600
    """Longest life of the session in seconds."""
    deadline: float = 600
    """Longest wait for the session's turn in seconds."""
    address: Optional[str] = None
    """Daemon, as MAYFLY_ADDRESS names it; this host's when absent."""


class MayflyEnvironment:
    """One session, which ends with the agent, and with the process."""

    def __init__(self, *, config_class: type = MayflyEnvironmentConfig, **kwargs: Any) -> None:
        self.config = config_class(**kwargs)
        self._session: Optional[Session] = None
        config = self.config
        address, token = config.address or os.environ.get("MAYFLY_ADDRESS"), os.environ.get("MAYFLY_TOKEN")
        self._client = Client(address, token, retries=20)
        try:
            self._session = self._client.create(
                config.golden, metadata={"mini-swe-agent": "1"}, egress=config.egress, memory_mib=config.memory_mib,
                cpus=config.cpus, ttl=config.ttl, idle_timeout=config.ttl, deadline=config.deadline,
                wait_docker=config.image is not None, attach=True,
            )
            self._container = self._start_container() if config.image else None
        except BaseException:
            self.cleanup()
            raise

    def _start_container(self) -> str:
        assert self._session is not None
        run = ["docker", "run", "-d", "--rm", "--entrypoint", "sleep", self.config.image, "infinity"]
        return self._session.exec(run).check().stdout.decode().strip()

    def execute(self, action: Dict[str, Any], cwd: str = "", *, timeout: Optional[int] = None) -> Dict[str, Any]:
        """Runs a command, and returns its output as mini-swe-agent has it."""
        limit = timeout or self.config.timeout
        forwarded = {name: os.environ[name] for name in self.config.forward_env if name in os.environ}
        env, cwd = {**forwarded, **self.config.env}, cwd or self.config.cwd
        argv = [*self.config.interpreter, action.get("command", "")]
        options: Dict[str, Any] = {"env": env, "cwd": cwd or None, "user": self.config.user}
        if self._container:
            variables = [option for name, value in env.items() for option in ("-e", f"{name}={value}")]
            place = [*(["-w", cwd] if cwd else []), *(["-u", self.config.user] if self.config.user else [])]
            argv, options = ["docker", "exec", *variables, *place, self._container, *argv], {}
        text = bytearray()
        try:
            assert self._session is not None, "the environment was cleaned up"
            outcome: Dict[str, Any] = {}
            for kind, data in self._session.stream(argv, timeout=limit, **options):
                if kind == "exit":
                    outcome = data
                    continue
                text += data
                if len(text) > 2 * MAX_OUTPUT:
                    del text[:-MAX_OUTPUT]
            if outcome.get("timed_out"):
                raise TimeoutError(f"the command did not end within {limit} s")
            code = outcome.get("exit_code")
            output = {
                "output": _decode(text), "returncode": code if code is not None else 128 + outcome["signal"],
                "exception_info": "",
            }
        except (MayflyError, httpx.TransportError, TimeoutError) as error:
            output = {
                "output": _decode(text), "returncode": -1,
                "exception_info": f"An error occurred while executing the command: {error}",
                "extra": {"exception_type": type(error).__name__, "exception": str(error)},
            }
        self._check_finished(output)
        return output

    def _check_finished(self, output: Dict[str, Any]) -> None:
        lines = output["output"].lstrip().splitlines(keepends=True)
        if lines and lines[0].strip() == "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT" and output["returncode"] == 0:
            submission = "".join(lines[1:])
            extra = {"exit_status": "Submitted", "submission": submission}
            raise Submitted({"role": "exit", "content": submission, "extra": extra})

    def get_template_vars(self, **kwargs: Any) -> Dict[str, Any]:
        return recursive_merge(self.config.model_dump(), platform.uname()._asdict(), kwargs)

    def serialize(self) -> Dict[str, Any]:
        kind = f"{type(self).__module__}.{type(self).__name__}"
        config = {"environment": self.config.model_dump(mode="json"), "environment_type": kind}
        return {"info": {"config": config}}

    def cleanup(self) -> None:
        """Discards the session."""
        session, self._session = self._session, None
        try:
            if session is not None:
                session.kill()
        except (MayflyError, httpx.TransportError):
            # It ends with this process.
            pass
        finally:
            self._client.close()

    def __del__(self) -> None:
        if getattr(self, "_session", None) is not None:
            self.cleanup()


def _decode(text: bytearray) -> str:
    return bytes(text[-MAX_OUTPUT:]).decode(errors="replace")
