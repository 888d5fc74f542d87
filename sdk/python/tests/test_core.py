"""What needs no daemon: addresses, refusals, trying again, and that the two clients are one."""

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

import mayfly
from mayfly import _core as core


class Refusing(http.server.ThreadingHTTPServer):
    """Refuses the first requests as it is told, and then answers with what it was asked."""

    def __init__(self, *refusals):
        self.refusals, self.seen = list(refusals), []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, dict(self.headers), body))
        status, after, answer = 201, None, {"id": "0123", "asked": json.loads(body or b"null")}
        if self.server.refusals:
            status, after = self.server.refusals.pop(0)
            answer = {"code": "tenant_busy", "message": "not now"}
        if status == 0:
            self.close_connection = True
            return
        content = json.dumps(answer).encode()
        self.send_response(status)
        if after is not None:
            self.send_header("Retry-After", after)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, *_):
        pass


def test_what_is_refused_for_now_is_asked_for_again_with_the_same_key():
    with Refusing((429, "0"), (503, "0"), (504, "0"), (0, None)) as server, mayfly.Client(server.address, "token") as client:
        session = client.create("default")
        assert session.id == "0123"
    assert len(server.seen) == 5
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.seen}) == 1
    assert server.seen[0][1]["Authorization"] == "Bearer token"


async def test_the_async_client_tries_again_as_well():
    with Refusing((429, "0"), (504, None)) as server:
        async with mayfly.AsyncClient(server.address) as client:
            assert (await client.create("default")).id == "0123"
    assert len(server.seen) == 3


def test_a_command_is_never_run_twice():
    with Refusing((503, "0")) as server, mayfly.Client(server.address) as client:
        session = mayfly.Session(client, {"id": "0123"})
        with pytest.raises(mayfly.MayflyError) as caught:
            session.exec(["true"])
    assert (caught.value.status, caught.value.retry_after, len(server.seen)) == (503, 0.0, 1)


def test_there_is_an_end_to_trying():
    with Refusing(*[(429, "0")] * 9) as server, mayfly.Client(server.address, retries=2) as client:
        with pytest.raises(mayfly.MayflyError) as caught:
            client.list()
    assert (caught.value.code, len(server.seen)) == ("tenant_busy", 3)


def test_the_daemon_says_how_long_to_wait():
    busy = mayfly.MayflyError(429, "tenant_busy", "", 3.0)
    assert 3.0 <= core.pause(busy, 0, True) <= 3.3
    assert core.pause(mayfly.MayflyError(429, "", "", 3600.0), 0, True) <= 1.1 * core.LONGEST_PAUSE
    assert core.pause(busy, 0, False) is None
    assert core.pause(mayfly.MayflyError(404, "no_such_session", ""), 0, True) is None
    assert core.pause(httpx.ConnectError(""), 3, True) <= 2.0
    assert core.pause(httpx.ReadTimeout(""), 0, True) is None


def test_addresses():
    assert core.Address.parse("unix:///a/b") == core.Address("http://mayfly", "/a/b")
    assert core.Address.parse("https://mayfly.example") == core.Address("https://mayfly.example", None)
    for bad in ("/run/mayfly/mayfly.sock", "unix://", "unix://host/x", "http://host", "ftp://host:1", "http://h:x"):
        with pytest.raises(ValueError):
            mayfly.Client(bad)


def test_words_of_a_guest_do_not_steer_a_terminal():
    error = core.refusal(502, {}, b"\x1b[2Jgone")
    assert (error.code, "\x1b" in str(error)) == ("no_daemon", False)
    error = core.refusal(429, {"retry-after": "7"}, b'{"code":"pressure","message":"m"}')
    assert (error.code, error.retry_after) == ("pressure", 7.0)


def test_commands_keep_every_byte():
    body = core.command(["a", b"\xff", "\udcff"], 1.5, {"env": {"A": b"\xfe"}, "cwd": Path("/x"), "user": None})
    raw = {"base64": "/w=="}
    assert body == {"argv": ["a", raw, raw], "timeout_ms": 1500, "env": {"A": {"base64": "/g=="}}, "cwd": "/x"}
    with pytest.raises(TypeError):
        core.command("ls -l", None, {})
    long = core.exec_request("p", ["cat"], b"\0" * (2 << 20), None, {})
    assert long.headers["Content-Type"].startswith("multipart/form-data; boundary=") and len(long.body) > 2 << 20


def test_a_result_has_the_code_of_a_shell():
    how = {"outcome": {"signal": 15}, "stdout": "", "stderr": {"base64": "/w=="}}
    assert (core.result(how).returncode, core.result(how).stderr) == (143, b"\xff")
    assert core.result({**how, "outcome": {"timed_out": True}}).returncode == 124
    assert core.result({**how, "outcome": {"exit_code": 3}}).returncode == 3


def test_one_client_is_made_of_the_other():
    subprocess.run([sys.executable, Path(__file__).parents[1] / "unasync.py", "--check"], check=True)
