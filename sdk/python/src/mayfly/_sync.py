"""The client for programs without an event loop: made of ``_async.py`` by ``unasync.py``."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any, Iterable, Iterator, BinaryIO, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

import httpx

from . import _core as core
from ._core import Address, MayflyError, Output, Path, Request, Result, Text


class Client:
    """A daemon. ``address`` is ``unix:///PATH`` or ``http(s)://HOST:PORT``, which needs ``token``; the socket that
    MAYFLY_SOCKET names, or the default one, when it is left out. ``timeout`` is in seconds and bounds each wait for the
    daemon. What is refused for now, or fails on the way, is tried again ``retries`` times where that can do no harm, after
    as long as the daemon says. May be used from several threads."""

    def __init__(
        self, address: Optional[str] = None, token: Optional[str] = None, timeout: float = 60.0, retries: int = 4
    ) -> None:
        where = Address.parse(address)
        self.timeout, self.retries, self.socket = timeout, retries, where.socket
        self.base_url = where.base_url
        self._token = token
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self._http = httpx.Client(
            base_url=where.base_url, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=timeout,
            # Not through a proxy of the environment, which would read the token.
            # Certificates are read only where there are some to check.
            transport=httpx.HTTPTransport(
                uds=where.socket, limits=limits, verify=where.base_url.startswith("https:")
            ), trust_env=False,
        )

    def create(
        self, golden: str, *,
        env: Optional[Mapping[str, str]] = None, metadata: Optional[Mapping[str, str]] = None, user: Optional[str] = None,
        memory_mib: Optional[int] = None, cpus: Optional[float] = None,
        disk_mib: Optional[int] = None, io_mib_per_second: Optional[int] = None,
        egress: Optional[Sequence[str]] = None, egress_deny: Optional[Sequence[str]] = None,
        egress_connections: Optional[int] = None, egress_bytes: Optional[int] = None,
        ttl: Optional[int] = None, idle_timeout: Optional[int] = None, deadline: Optional[float] = None,
        wait_docker: bool = False, publish: Optional[str] = None, attach: bool = False,
        idempotency_key: Optional[str] = None,
    ) -> Session:
        """Creates a session. ``egress`` lists the hosts it may reach (``NAME``, ``*.NAME``, an IP address or a network, with
        ``:PORT`` or else ports 80 and 443; or ``*``), ``egress_deny`` what is taken back from ``*``, within
        ``egress_connections`` at a time and ``egress_bytes`` in all. ``ttl``, ``idle_timeout`` and ``deadline`` (the longest
        wait for its turn) are in seconds; what is left out is the daemon's default. With ``attach`` the session is bound to
        this process: it is discarded when the process ends, however that comes about. Raises ``MayflyError``."""
        request = core.create_request(
            golden, env=env and dict(env), metadata=metadata and dict(metadata), user=user, memory_mib=memory_mib, cpus=cpus,
            disk_mib=disk_mib, io_mib_per_second=io_mib_per_second, egress=egress, egress_deny=egress_deny,
            egress_connections=egress_connections, egress_bytes=egress_bytes, ttl=ttl, idle_timeout=idle_timeout,
            deadline=deadline, wait_docker=wait_docker, publish=publish, attach=attach, idempotency_key=idempotency_key,
        )
        timeout = self.timeout + (deadline or 30)
        if not attach:
            return Session(self, self._json(request, timeout))
        response = self._open(request, timeout)
        lines = response.iter_lines()
        try:
            return Session(self, json.loads(next(lines)), (response, lines))
        except BaseException:
            response.close()
            raise

    def list(self) -> List[Session]:
        """The sessions that live, oldest first."""
        return [Session(self, info) for info in self.call("GET", "/v1/sessions")["sessions"]]

    def get(self, session_id: str) -> Session:
        """A session that lives."""
        return Session(self, self.call("GET", f"/v1/sessions/{core.quote(session_id, safe='')}"))

    def status(self) -> Dict[str, Any]:
        """The daemon, its goldens and pools."""
        return self.call("GET", "/v1/status")

    def goldens(self) -> List[Dict[str, Any]]:
        """The golden images."""
        return self.call("GET", "/v1/goldens")["goldens"]

    def call(
        self, method: str, path: str, body: Any = None, headers: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = -1,
    ) -> Any:
        """Any route with JSON in and out; ``None`` for an answer without content."""
        request = Request(method, path, body, headers or {}, repeatable=method in ("GET", "PUT", "DELETE"))
        return self._json(request, timeout)

    def close(self) -> None:
        """Closes its connections. Sessions live on, but for attached ones."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _json(self, request: Request, timeout: Optional[float] = -1) -> Any:
        response = self._open(request, timeout)
        try:
            return json.loads(response.read() or b"null")
        finally:
            response.close()

    def _open(
        self, request: Request, timeout: Optional[float] = -1, content: Union[bytes, Iterable[bytes], None] = None
    ) -> httpx.Response:
        """The answer to a request, to be read and closed; a refusal is raised, where trying again does not help."""
        attempt = 0
        while True:
            try:
                return self._once(request, timeout, content)
            except (MayflyError, httpx.TransportError) as error:
                pause = core.pause(error, attempt, request.repeatable) if attempt < self.retries else None
                if pause is None:
                    raise
            time.sleep(pause)
            attempt += 1

    def _once(
        self, request: Request, timeout: Optional[float], content: Union[bytes, Iterable[bytes], None]
    ) -> httpx.Response:
        arguments = request.arguments()
        if content is not None:
            arguments["content"] = content
        timeout = self.timeout if timeout == -1 else timeout
        built = self._http.build_request(request.method, request.path, timeout=timeout, **arguments)
        response = self._http.send(built, stream=True)
        if response.status_code < 400:
            return response
        try:
            raise core.refusal(response.status_code, response.headers, response.read())
        finally:
            response.close()


class Session:
    """A session. Leaving a ``with`` block discards it. ``info`` is what the daemon said of it when it was asked last."""

    def __init__(
        self, client: Client, info: Dict[str, Any], attached: Optional[Tuple[httpx.Response, Any]] = None
    ) -> None:
        self.client, self.info = client, info
        # While it is open, an attached session lives; it is closed with the iterator of its lines.
        self._attached = attached

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.info["id"])

    @property
    def docker_host(self) -> str:
        """For ``DOCKER_HOST``: its own Docker daemon. A Unix socket on the daemon's host; over TCP the docker client needs the
        token among the ``HttpHeaders`` of a configuration of its own (``DOCKER_CONFIG``), which ``mayfly docker`` makes. Not of
        the user's: docker sends those to every daemon."""
        if self.client.socket is not None:
            return f"unix://{self.info['docker_socket']}"
        return f"tcp://{core.urlsplit(self.client.base_url).netloc}{self._path('docker')}"

    @property
    def published_address(self) -> Optional[str]:
        """The loopback address of the daemon's host on which ports that containers publish are reached."""
        return self.info.get("published_address")

    def refresh(self) -> Session:
        """Asks the daemon for ``info`` again."""
        self.info = self.client.call("GET", self._path())
        return self

    def exec(
        self, argv: Sequence[Text], *, stdin: Optional[Text] = None, timeout: Optional[float] = None, **options: Any
    ) -> Result:
        """Runs a command to its end. ``options`` are ``env``, ``cwd``, ``user`` and other fields of the API. It is killed after
        ``timeout`` seconds. Of more than 8 MiB of output a part is left out; ``stream`` has no bound."""
        wait = None if timeout is None else timeout + self.client.timeout
        request = core.exec_request(self._path("exec"), argv, stdin, timeout, options)
        return core.result(self.client._json(request, wait))

    def stream(
        self, argv: Sequence[Text], *, stdin: Optional[Text] = None, timeout: Optional[float] = None, **options: Any
    ) -> Iterator[Tuple[str, Any]]:
        """As ``exec``, but yields ``("stdout", bytes)`` and ``("stderr", bytes)`` as they come, at last ``("exit", outcome)`` with
        what the API says of its end. Closing the iterator kills the command."""
        request = core.exec_request(self._path("exec?stream=true"), argv, stdin, timeout, options)
        response = self.client._open(request)
        try:
            for line in response.iter_lines():
                event = core.event(line, response.status_code)
                if event is not None:
                    yield event
                    if event[0] == "exit":
                        return
        except httpx.TransportError as error:
            raise core.lost(response.status_code) from error
        finally:
            response.close()
        raise core.lost(response.status_code)

    def start(
        self, argv: Sequence[Text], *, stdin: bool = False, timeout: Optional[float] = None, **options: Any
    ) -> Background:
        """Starts a command in the background: it goes on after this call. ``stdin`` says that it is sent with ``write``."""
        body = core.command(argv, timeout, {**options, "open_stdin": stdin or None})
        return Background(self, self.client.call("POST", self._path("execs"), body))

    def commands(self) -> List[Background]:
        """Its background commands."""
        return [Background(self, info) for info in self.client.call("GET", self._path("execs"))["execs"]]

    def read_file(self, path: Path, limit: int = 64 << 20, user: Optional[str] = None) -> bytes:
        """A file's content; raises ``ValueError`` when it is longer than ``limit`` bytes, for the guest decides how much it sends."""
        query = core.file_query(path, user=user)
        response = self.client._open(Request("GET", self._path(f"files/content{query}"), repeatable=True))
        try:
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > limit:
                    raise ValueError(f"{path!r} has more than {limit} bytes")
            return bytes(content)
        finally:
            response.close()

    def write_file(
        self, path: Path, content: Union[bytes, BinaryIO], mode: Optional[int] = None, user: Optional[str] = None,
        parents: bool = False, in_place: bool = False,
    ) -> None:
        """Writes a file; all of it appears at once, or nothing does, unless it is written ``in_place``."""
        octal = None if mode is None else f"{mode:o}"
        query = core.file_query(path, mode=octal, user=user, parents=parents, in_place=in_place)
        data: Union[bytes, Iterable[bytes]] = content if isinstance(content, bytes) else _pieces(content)
        request = Request("PUT", self._path(f"files/content{query}"), repeatable=isinstance(content, bytes))
        self.client._open(request, content=data).close()

    def list_files(self, path: Path, user: Optional[str] = None) -> List[Dict[str, Any]]:
        """The entries of a folder."""
        return self.client.call("GET", self._path(f"files/list{core.file_query(path, user=user)}"))["entries"]

    def stat(self, path: Path, user: Optional[str] = None) -> Dict[str, Any]:
        """What the API says of a path."""
        return self.client.call("GET", self._path(f"files/stat{core.file_query(path, user=user)}"))

    def mkdir(self, path: Path, parents: bool = False, user: Optional[str] = None) -> None:
        """Makes a folder."""
        self.client.call("POST", self._path(f"files/mkdir{core.file_query(path, parents=parents, user=user)}"))

    def remove(self, path: Path, recursive: bool = False, user: Optional[str] = None) -> None:
        """Removes a path."""
        query = core.file_query(path, recursive=recursive, user=user)
        request = Request("DELETE", self._path(f"files{query}"))
        self.client._open(request).close()

    def put_tar(self, path: Path, archive: Union[bytes, BinaryIO]) -> None:
        """Unpacks a tar archive into a folder."""
        data: Union[bytes, Iterable[bytes]] = archive if isinstance(archive, bytes) else _pieces(archive)
        request = Request("PUT", self._path(f"files/tar{core.file_query(path)}"))
        self.client._open(request, timeout=None, content=data).close()

    def get_tar(self, path: Path) -> Iterator[bytes]:
        """A tar archive of a path, in pieces."""
        response = self.client._open(Request("GET", self._path(f"files/tar{core.file_query(path)}"), repeatable=True))
        try:
            for piece in response.iter_bytes():
                yield piece
        finally:
            response.close()

    def egress(self) -> Dict[str, Any]:
        """What it may reach outside, and what it has used."""
        return self.client.call("GET", self._path("egress"))

    def set_egress(
        self, allow: Optional[Sequence[str]], deny: Optional[Sequence[str]] = None,
        max_connections: Optional[int] = None, max_bytes: Optional[int] = None,
    ) -> Dict[str, Any]:
        """Replaces what it may reach outside; by nothing when ``allow`` is ``None``."""
        policy = None if allow is None else core.egress_policy(allow, deny, max_connections, max_bytes)
        # As bytes: a body of `null` is one.
        return self.client.call("PUT", self._path("egress"), json.dumps(policy).encode())

    def logs(self) -> str:
        """The end of its console."""
        response = self.client._open(Request("GET", self._path("logs"), repeatable=True))
        try:
            return response.read().decode(errors="replace")
        finally:
            response.close()

    def extend(self, ttl: int) -> None:
        """Lets it live for ``ttl`` seconds from now."""
        self.info = self.client.call("POST", self._path("extend"), {"ttl_seconds": ttl})

    def kill(self) -> None:
        """Discards it; nothing of it is left then. One that is over already is no error."""
        try:
            self.client.call("DELETE", self._path())
        except MayflyError as error:
            if error.code not in ("session_gone", "no_such_session"):
                raise
        finally:
            if self._attached is not None:
                self._attached[0].close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.kill()

    def _path(self, rest: str = "") -> str:
        path = f"/v1/sessions/{core.quote(self.id, safe='')}"
        return f"{path}/{rest}" if rest else path


class Background:
    """A command in the background of a session. ``info`` is what the daemon said of it when it was asked last."""

    def __init__(self, session: Session, info: Dict[str, Any]) -> None:
        self.session, self.info = session, info

    @property
    def n(self) -> int:
        """Its number in the session."""
        return int(self.info["n"])

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return int(self.info["pid"])

    def wait(self, timeout: Optional[float] = None) -> Optional[Dict[str, Any]]:
        """Waits for its end, and returns what the API says of it; ``None`` when it still runs after ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = 30.0 if end is None else min(30.0, max(0.0, end - time.monotonic()))
            path = self._path(f"?wait_ms={core.milliseconds(left)}")
            self.info = self.session.client.call("GET", path, timeout=left + self.session.client.timeout)
            if self.info.get("outcome") is not None:
                return dict(self.info["outcome"])
            if self.info.get("lost") is not None:
                raise MayflyError(200, "command_lost", self.info["lost"])
            if end is not None and time.monotonic() >= end:
                return None

    def output(self, stream: str = "stdout", offset: int = 0, limit: Optional[int] = None, wait: float = 0.0) -> Output:
        """What it has written from ``offset`` on; waits up to ``wait`` seconds for something new."""
        query = f"/output?stream={stream}&offset={offset}&wait_ms={core.milliseconds(min(wait, 60.0))}"
        query += "" if limit is None else f"&limit={limit}"
        answer = self.session.client.call("GET", self._path(query), timeout=wait + self.session.client.timeout)
        return Output(answer["offset"], answer["next_offset"], core.unblob(answer["data"]), answer["end"])

    def write(self, data: bytes, eof: bool = False) -> None:
        """Sends bytes to its stdin; ``eof`` closes it."""
        request = Request("POST", self._path(f"/stdin{'?eof=true' if eof else ''}"), data)
        self.session.client._open(request, timeout=None).close()

    def signal(self, number: int) -> None:
        """Sends a signal to its process group, by its Linux number."""
        self.session.client.call("POST", self._path("/signal"), {"number": number})

    def resize(self, rows: int, cols: int) -> None:
        """Sets the size of its terminal."""
        self.session.client.call("POST", self._path("/resize"), {"rows": rows, "cols": cols})

    def kill(self) -> None:
        """Kills it. One that has ended already is no error."""
        try:
            self.session.client.call("DELETE", self._path())
        except MayflyError as error:
            if error.code != "command_ended":
                raise

    def _path(self, rest: str = "") -> str:
        return self.session._path(f"execs/{self.n}{rest}")


def _pieces(content: BinaryIO) -> Iterator[bytes]:
    while piece := content.read(256 << 10):
        yield piece
