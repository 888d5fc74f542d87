"""What the two clients share: requests and answers as data, errors, and when to try again."""

from __future__ import annotations

import base64
import json
import os
import random
import uuid
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union
from urllib.parse import quote, urlsplit

import httpx

Text = Union[str, bytes]
Path = Union[str, bytes, "os.PathLike[Any]"]

DEFAULT_RUN = "/run/mayfly"
#: Refusals after which the same request may be granted; the daemon has done nothing for it then.
PASSING = frozenset({429, 503, 504})
#: Longest pause before another try, in seconds, whatever the daemon says.
LONGEST_PAUSE = 30.0
#: Longest stdin that is sent with its command as JSON, in bytes; longer ones are a part of their own.
INLINE_STDIN = 1 << 20


class MayflyError(Exception):
    """What the daemon refuses. ``code`` is a word that programs may rely on, ``retry_after`` seconds, where it passes."""

    def __init__(self, status: int, code: str, message: str, retry_after: Optional[float] = None) -> None:
        super().__init__(f"{printable(message)} ({code})")
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class CommandFailed(Exception):
    """A command that did not exit with code 0."""

    def __init__(self, result: Result) -> None:
        how = "it timed out" if result.timed_out else f"exit code {result.exit_code}, signal {result.signal}"
        super().__init__(f"{how}: {printable(result.stderr.decode(errors='replace').strip()[-500:])}")
        self.result = result


@dataclass(frozen=True)
class Result:
    """A command that has ended: exactly one of ``exit_code``, ``signal`` and ``timed_out`` tells how. ``truncated`` says
    that a part of its output is left out."""

    exit_code: Optional[int]
    signal: Optional[int]
    timed_out: bool
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @property
    def returncode(self) -> int:
        """The code that a shell would report: the exit code, 128 + signal, or 124 for a timeout (timeout(1))."""
        if self.timed_out:
            return 124
        return 128 + self.signal if self.signal is not None else (self.exit_code or 0)

    def check(self) -> Result:
        """Itself; raises ``CommandFailed`` unless it exited with code 0."""
        if self.exit_code != 0:
            raise CommandFailed(self)
        return self


@dataclass(frozen=True)
class Output:
    """A piece of a background command's output. ``offset`` is later than asked for when older bytes are gone."""

    offset: int
    next_offset: int
    data: bytes
    end: bool


@dataclass(frozen=True)
class Address:
    """Where a daemon is."""

    base_url: str
    socket: Optional[str]

    @classmethod
    def parse(cls, address: Optional[str]) -> Address:
        """``unix:///PATH`` or ``http(s)://HOST:PORT``; what MAYFLY_SOCKET names, or the socket in MAYFLY_RUN, when left out."""
        in_run = os.path.join(os.environ.get("MAYFLY_RUN", DEFAULT_RUN), "mayfly.sock")
        address = address or "unix://" + os.environ.get("MAYFLY_SOCKET", in_run)
        url = urlsplit(address)
        if url.scheme == "unix" and url.path and not url.netloc:
            return cls("http://mayfly", url.path)
        try:
            if url.scheme in ("http", "https") and url.hostname and (url.port or url.scheme == "https"):
                return cls(address.rstrip("/"), None)
        except ValueError:
            pass
        raise ValueError(f"{address!r} is no address of a daemon: use unix:///PATH or http://HOST:PORT")


@dataclass(frozen=True)
class Request:
    """A request with everything but where it goes. ``repeatable`` ones may be sent again when they fail on the way."""

    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = ()  # type: ignore[assignment]
    repeatable: bool = False

    def arguments(self) -> Dict[str, Any]:
        headers = dict(self.headers)
        content = None
        if self.body is not None:
            content = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
            headers.setdefault("Content-Type", "application/json")
        return {"headers": headers, "content": content}


def pause(error: Exception, attempt: int, repeatable: bool) -> Optional[float]:
    """Seconds to wait before attempt number ``attempt + 1``; ``None`` when there is to be none."""
    backoff = min(0.25 * 2.0**attempt, 8.0)
    if isinstance(error, MayflyError):
        if not repeatable or error.status not in PASSING or error.code == "shutting_down" and attempt > 2:
            return None
        asked = error.retry_after if error.retry_after is not None else backoff
        # Not all at the same moment.
        return min(asked, LONGEST_PAUSE) * random.uniform(1.0, 1.1)
    if isinstance(error, (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)) and repeatable:
        return backoff * random.uniform(0.5, 1.0)
    return None


def create_request(
    golden: str, *, attach: bool, idempotency_key: Optional[str], egress: Any, egress_deny: Any,
    egress_connections: Optional[int], egress_bytes: Optional[int], **fields: Any,
) -> Request:
    """The request for a session. One that is not attached has a key, so that it may be sent again."""
    body = given(
        golden=golden, env=fields["env"], metadata=fields["metadata"], user=fields["user"],
        egress=egress_policy(egress, egress_deny, egress_connections, egress_bytes) or None,
        limits=given(
            memory_mib=fields["memory_mib"], cpus=fields["cpus"], disk_mib=fields["disk_mib"],
            io_mib_per_second=fields["io_mib_per_second"],
        ) or None,
        ttl_seconds=fields["ttl"], idle_timeout_seconds=fields["idle_timeout"],
        deadline_ms=milliseconds(fields["deadline"]), wait_docker=fields["wait_docker"] or None,
        publish=fields["publish"],
    )
    if attach:
        if idempotency_key:
            raise ValueError("attach and idempotency_key exclude each other")
        return Request("POST", "/v1/sessions?attach=true", body)
    key = idempotency_key or uuid.uuid4().hex
    return Request("POST", "/v1/sessions", body, {"Idempotency-Key": key}, repeatable=True)


def egress_policy(
    allow: Optional[Sequence[str]], deny: Optional[Sequence[str]] = None,
    max_connections: Optional[int] = None, max_bytes: Optional[int] = None,
) -> Dict[str, Any]:
    return given(
        allow=None if allow is None else list(allow), deny=list(deny) if deny else None,
        max_connections=max_connections, max_bytes=max_bytes,
    )


def command(argv: Sequence[Text], timeout: Optional[float], options: Mapping[str, Any]) -> Dict[str, Any]:
    """A command as the API has it. ``options`` are its other fields: ``env``, ``cwd``, ``user``, ``tty``, ``keep``, ..."""
    if isinstance(argv, (str, bytes)):
        raise TypeError('argv is a list, such as ["sh", "-c", "..."]: no shell is involved')
    fields = dict(options)
    if fields.get("env") is not None:
        fields["env"] = {name: blob(value) for name, value in fields["env"].items()}
    if fields.get("cwd") is not None:
        fields["cwd"] = blob(os.fspath(fields["cwd"]))
    return given(argv=[blob(arg) for arg in argv], timeout_ms=milliseconds(timeout), **fields)


def multipart(first: Dict[str, Any], stdin: bytes) -> Tuple[bytes, Dict[str, str]]:
    """A command with a long stdin (RFC 7578): parts ``command`` and ``stdin``."""
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="command"\r\nContent-Type: application/json\r\n\r\n'
        f'{json.dumps(first)}\r\n--{boundary}\r\nContent-Disposition: form-data; name="stdin"; filename="stdin"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + stdin + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def exec_request(path: str, argv: Sequence[Text], stdin: Optional[Text], timeout: Optional[float], options: Mapping[str, Any]) -> Request:
    """The request that runs a command. It may do something, and so is never sent twice."""
    body = command(argv, timeout, options)
    if not stdin:
        return Request("POST", path, body)
    data = stdin.encode() if isinstance(stdin, str) else bytes(stdin)
    if len(data) <= INLINE_STDIN:
        return Request("POST", path, {**body, "stdin": blob(data)})
    content, headers = multipart(body, data)
    return Request("POST", path, content, headers)


def result(answer: Mapping[str, Any]) -> Result:
    how = answer["outcome"]
    return Result(
        how.get("exit_code"), how.get("signal"), how.get("timed_out", False),
        unblob(answer["stdout"]), unblob(answer["stderr"]), bool(answer.get("truncated", False)),
    )


def event(line: str, status: int) -> Optional[Tuple[str, Any]]:
    """A line of a running command's stream; ``None`` for what only says that it lives."""
    message = json.loads(line)
    kind = message["type"]
    if kind == "error":
        raise MayflyError(status, message["code"], message["message"])
    if kind in ("stdout", "stderr"):
        return kind, unblob(message["data"])
    if kind == "exit":
        return kind, message["outcome"]
    return None


def lost(status: int) -> MayflyError:
    return MayflyError(status, "connection_lost", "the connection ended before the command did")


def refusal(status: int, headers: Mapping[str, str], text: bytes) -> MayflyError:
    """The error that an answer of 400 and above is."""
    after = headers.get("retry-after", "")
    # Whole seconds here; others may send a date (RFC 9110, section 10.2.3), which is left alone.
    retry_after = float(after) if after.isdigit() else None
    try:
        body = json.loads(text)
        return MayflyError(status, str(body["code"]), str(body["message"]), retry_after)
    except (ValueError, KeyError, TypeError):
        # Somebody else has answered: a proxy, or a server in a guest.
        return MayflyError(status, "no_daemon", text[:500].decode(errors="replace"), retry_after)


def file_query(path: Path, **parameters: Any) -> str:
    pairs = [f"path={quoted(path)}"]
    for name, value in parameters.items():
        if value is not None and value is not False:
            pairs.append(f"{name}={'true' if value is True else quote(str(value), safe='')}")
    return "?" + "&".join(pairs)


def given(**fields: Any) -> Dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def milliseconds(seconds: Optional[float]) -> Optional[int]:
    return None if seconds is None else int(seconds * 1000)


def blob(value: Text) -> Any:
    """Bytes as the API has them: a string where they are UTF-8."""
    if isinstance(value, str):
        try:
            value.encode()
            return value
        except UnicodeEncodeError:
            # What os.fsdecode() made of bytes that are none.
            value = os.fsencode(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def unblob(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


def quoted(path: Path) -> str:
    return quote(os.fsencode(path), safe="/")


def printable(text: str) -> str:
    """Words of a guest, without what could steer the terminal that shows them."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)

