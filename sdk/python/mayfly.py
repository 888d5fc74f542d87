"""A client of the Mayfly daemon (``mayfly serve``): throw-away microVMs with a warm Docker daemon inside.

    import mayfly

    with mayfly.Client().create("default") as session:
        print(session.exec(["uname", "-a"]).check().stdout.decode())

One file, standard library only, Python 3.9 or later. Every call has a connection of its own, so objects may be used from several
threads. Other routes of the API: ``Client.call``.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
from dataclasses import dataclass
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union
from urllib.parse import quote, urlsplit

__all__ = ["Client", "CommandFailed", "MayflyError", "Result", "Session"]

Text = Union[str, bytes]
Path = Union[str, bytes, "os.PathLike[Any]"]
DEFAULT_SOCKET = "/run/mayfly/mayfly.sock"


class MayflyError(Exception):
    """What the daemon refuses. ``code`` is a word that programs may rely on, ``retry_after`` seconds, where it passes."""

    def __init__(self, status: int, code: str, message: str, retry_after: Optional[float] = None) -> None:
        super().__init__(f"{_printable(message)} ({code})")
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class CommandFailed(Exception):
    """A command that did not exit with code 0."""

    def __init__(self, result: Result) -> None:
        how = "it timed out" if result.timed_out else f"exit code {result.exit_code}, signal {result.signal}"
        super().__init__(f"{how}: {_printable(result.stderr.decode(errors='replace').strip()[-500:])}")
        self.result = result


@dataclass(frozen=True)
class Result:
    """A command that has ended: exactly one of ``exit_code``, ``signal`` and ``timed_out`` tells how."""

    exit_code: Optional[int]
    signal: Optional[int]
    timed_out: bool
    stdout: bytes
    stderr: bytes

    def check(self) -> Result:
        """Itself; raises ``CommandFailed`` unless it exited with code 0."""
        if self.exit_code != 0:
            raise CommandFailed(self)
        return self


class Client:
    """A daemon. ``address`` is ``unix:///PATH`` or ``http://HOST:PORT``, which needs ``token``; the socket that MAYFLY_SOCKET
    names, or the default one, when it is left out. ``timeout`` is in seconds and bounds each wait for the daemon."""

    def __init__(self, address: Optional[str] = None, token: Optional[str] = None, timeout: float = 60.0) -> None:
        address = address or "unix://" + os.environ.get("MAYFLY_SOCKET", DEFAULT_SOCKET)
        self._url = urlsplit(address)
        if not {"unix": self._url.path, "http": self._url.port}.get(self._url.scheme):
            raise ValueError(f"{address!r} is no address of a daemon: use unix:///PATH or http://HOST:PORT")
        self._token, self._timeout = token, timeout

    def create(
        self, golden: str, *,
        env: Optional[Dict[str, str]] = None, metadata: Optional[Dict[str, str]] = None,
        memory_mib: Optional[int] = None, cpus: Optional[float] = None,
        disk_mib: Optional[int] = None, io_mib_per_second: Optional[int] = None,
        egress: Optional[List[str]] = None, egress_connections: Optional[int] = None, egress_bytes: Optional[int] = None,
        ttl: Optional[int] = None, idle_timeout: Optional[int] = None, deadline: Optional[float] = None,
        wait_docker: bool = False, idempotency_key: Optional[str] = None,
    ) -> Session:
        """Creates a session. ``egress`` lists the hosts it may reach (``NAME``, ``*.NAME`` or an IP address, with ``:PORT`` or else
        ports 80 and 443), within ``egress_connections`` at a time and ``egress_bytes`` in all. ``ttl``, ``idle_timeout`` and
        ``deadline`` (the longest wait for its turn) are in seconds; what is left out is the daemon's default. Raises ``MayflyError`` with ``retry_after`` when it is not possible now."""
        request = _given(
            egress=_given(allow=egress, max_connections=egress_connections, max_bytes=egress_bytes) or None,
            golden=golden, env=env, metadata=metadata, ttl_seconds=ttl,
            limits=_given(memory_mib=memory_mib, cpus=cpus, disk_mib=disk_mib, io_mib_per_second=io_mib_per_second),
            idle_timeout_seconds=idle_timeout, deadline_ms=_milliseconds(deadline), wait_docker=wait_docker,
        )
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return Session(self, self.call("POST", "/v1/sessions", request, headers, timeout=self._timeout + (deadline or 30)))

    def list(self) -> List[Session]:
        """The sessions that live, oldest first."""
        return [Session(self, info) for info in self.call("GET", "/v1/sessions")["sessions"]]

    def get(self, session_id: str) -> Session:
        """A session that lives."""
        return Session(self, self.call("GET", f"/v1/sessions/{quote(session_id, safe='')}"))

    def status(self) -> Dict[str, Any]:
        """The daemon, its goldens and pools."""
        return self.call("GET", "/v1/status")

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}, timeout: Optional[float] = -1
    ) -> Any:
        """Any route with JSON in and out; ``None`` for an answer without content."""
        content = None if body is None else json.dumps(body).encode()
        headers = {**headers, "Content-Type": "application/json"} if content else headers
        with self._send(method, path, content, headers, timeout) as response:
            return json.loads(response.read() or b"null")

    def _send(
        self, method: str, path: str, body: Union[bytes, BinaryIO, None] = None, headers: Mapping[str, str] = {},
        timeout: Optional[float] = -1,
    ) -> http.client.HTTPResponse:
        """The answer to a request, to be closed; a refusal is raised."""
        timeout = self._timeout if timeout == -1 else timeout
        host, port = (self._url.hostname, self._url.port) if self._url.scheme == "http" else ("mayfly", None)
        connection = http.client.HTTPConnection(host or "", port, timeout=timeout)
        # The connection ends with its one answer: closing the answer closes it, and the daemon stops what it does for it.
        own = {"Connection": "close", **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        try:
            if self._url.scheme == "unix":
                connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connection.sock.settimeout(timeout)
                connection.sock.connect(self._url.path)
            try:
                connection.request(method, path, body, {**headers, **own})
            except (BrokenPipeError, ConnectionResetError):
                pass  # The daemon has answered before it took all of the body; the answer says why.
            response = connection.getresponse()
            if response.status < 400:
                return response
            raise _refusal(response)
        except BaseException:
            connection.close()
            raise


class Session:
    """A session. Leaving a ``with`` block discards it. ``info`` is what the daemon said of it when it was asked last."""

    def __init__(self, client: Client, info: Dict[str, Any]) -> None:
        self.client, self.info = client, info

    @property
    def id(self) -> str:
        """Its id."""
        return self.info["id"]

    @property
    def docker_host(self) -> str:
        """For ``DOCKER_HOST``: its own Docker daemon. A Unix socket on the daemon's host; over TCP the docker client needs the
        token among the ``HttpHeaders`` of a configuration of its own (``DOCKER_CONFIG``), which ``mayfly docker`` makes. Not of
        the user's: docker sends those to every daemon."""
        if self.client._url.scheme == "unix":
            return f"unix://{self.info['docker_socket']}"
        return f"tcp://{self.client._url.netloc}{self._path('docker')}"

    def exec(self, argv: Sequence[Text], *, stdin: Text = b"", timeout: Optional[float] = None, **options: Any) -> Result:
        """Runs a command to its end. ``options`` are ``env``, ``cwd`` and ``user``. It is killed after ``timeout`` seconds.
        At most 8 MiB of output; ``stream`` has no bound."""
        wait = None if timeout is None else timeout + self.client._timeout
        answer = self.client.call("POST", self._path("exec"), _command(argv, stdin, timeout, options), timeout=wait)
        how, output = answer["outcome"], (_unblob(answer["stdout"]), _unblob(answer["stderr"]))
        return Result(how.get("exit_code"), how.get("signal"), how.get("timed_out", False), *output)

    def stream(
        self, argv: Sequence[Text], *, stdin: Text = b"", timeout: Optional[float] = None, **options: Any
    ) -> Iterator[Tuple[str, Any]]:
        """As ``exec``, but yields ``("stdout", bytes)`` and ``("stderr", bytes)`` as they come, at last ``("exit", outcome)`` with
        what the API says of its end. Closing the iterator kills the command."""
        body, headers = json.dumps(_command(argv, stdin, timeout, options)).encode(), {"Content-Type": "application/json"}
        with self.client._send("POST", self._path("exec?stream=true"), body, headers) as response:
            for line in response:
                event = json.loads(line)
                if event["type"] == "error":
                    raise MayflyError(response.status, event["code"], event["message"])
                if event["type"] in ("stdout", "stderr"):
                    yield event["type"], _unblob(event["data"])
                elif event["type"] == "exit":
                    yield "exit", event["outcome"]
                    return
        raise MayflyError(response.status, "connection_lost", "the connection ended before the command did")

    def read_file(self, path: Path, limit: int = 64 << 20) -> bytes:
        """A file's content; raises ``ValueError`` when it is longer than ``limit`` bytes, for the guest decides how much it sends."""
        with self.client._send("GET", self._path(f"files/content?path={_quoted(path)}")) as response:
            content = response.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"{path!r} has more than {limit} bytes")
        return content

    def write_file(self, path: Path, content: Union[bytes, BinaryIO], mode: int = 0o644) -> None:
        """Writes a file; all of it appears at once, or nothing does."""
        self.client._send("PUT", self._path(f"files/content?path={_quoted(path)}&mode={mode:o}"), content).close()

    def extend(self, ttl: int) -> None:
        """Lets it live for ``ttl`` seconds from now."""
        self.info = self.client.call("POST", self._path("extend"), {"ttl_seconds": ttl})

    def kill(self) -> None:
        """Discards it; nothing of it is left then. One that is over already is no error."""
        try:
            self.client.call("DELETE", f"/v1/sessions/{self.id}")
        except MayflyError as error:
            if error.code != "session_gone":
                raise

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def _path(self, rest: str) -> str:
        return f"/v1/sessions/{self.id}/{rest}"


def _printable(text: str) -> str:
    """Words of a guest, without what could steer the terminal that shows them."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _given(**fields: Any) -> Dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _milliseconds(seconds: Optional[float]) -> Optional[int]:
    return None if seconds is None else int(seconds * 1000)


def _command(argv: Sequence[Text], stdin: Text, timeout: Optional[float], options: Dict[str, Any]) -> Dict[str, Any]:
    argv, given = [_blob(arg) for arg in argv], _blob(stdin) if stdin else None
    return _given(argv=argv, stdin=given, timeout_ms=_milliseconds(timeout), **options)


def _blob(value: Text) -> Any:
    return value if isinstance(value, str) else {"base64": base64.b64encode(value).decode()}


def _unblob(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


def _quoted(path: Path) -> str:
    return quote(os.fsencode(path), safe="/")


def _refusal(response: http.client.HTTPResponse) -> MayflyError:
    after, text = response.getheader("Retry-After", ""), response.read()
    try:
        body = json.loads(text)
        code, message = body["code"], body["message"]
    except (ValueError, KeyError, TypeError):
        code, message = "unknown", text[:200].decode(errors="replace")
    return MayflyError(response.status, code, message, float(after) if after.isdigit() else None)
