"""Against a real daemon: skipped unless MAYFLY_SOCKET names its Unix socket. MAYFLY_GOLDEN is the golden, `default` unless set.

    MAYFLY_SOCKET=/run/mayfly/mayfly.sock python3 -m pytest
"""

import io
import os
import socket
import subprocess
import sys
import tarfile
import time
import unittest

import mayfly

GOLDEN = os.environ.get("MAYFLY_GOLDEN", "default")


class Addresses(unittest.TestCase):
    def test_what_is_no_address_is_refused(self):
        for bad in ("/run/mayfly/mayfly.sock", "unix://", "http://host", "unix://host/path", "x"):
            with self.assertRaises(ValueError, msg=bad):
                mayfly.Client(bad)


@unittest.skipUnless(os.environ.get("MAYFLY_SOCKET"), "MAYFLY_SOCKET names no daemon")
class WithADaemon(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = mayfly.Client()
        cls.session = cls.client.create(GOLDEN, env={"FROM": "create"}, metadata={"test": "sdk"}, ttl=300)

    @classmethod
    def tearDownClass(cls):
        cls.session.kill()
        cls.client.close()

    def test_a_command_is_told_as_it_ended(self):
        result = self.session.exec(["sh", "-c", 'echo "$FROM"; printf "\\377" >&2; exit 3'])
        self.assertEqual((result.exit_code, result.signal, result.timed_out), (3, None, False))
        self.assertEqual((result.stdout, result.stderr), (b"create\n", b"\xff"))
        with self.assertRaises(mayfly.CommandFailed):
            result.check()
        self.assertEqual(self.session.exec(["sh", "-c", "kill -9 $$"]).signal, 9)
        self.assertTrue(self.session.exec(["sleep", "600"], timeout=0.2).timed_out)

    def test_options_and_stdin_reach_the_command(self):
        result = self.session.exec(["sh", "-c", "pwd; echo $A; cat"], stdin=b"\x00in", env={"A": "b"}, cwd="/tmp").check()
        self.assertEqual(result.stdout, b"/tmp\nb\n\x00in")

    def test_a_stream_ends_with_the_exit(self):
        events = list(self.session.stream(["sh", "-c", "echo out; echo err >&2; exit 1"]))
        joined = {kind: b"".join(data for k, data in events if k == kind) for kind in ("stdout", "stderr")}
        self.assertEqual(joined, {"stdout": b"out\n", "stderr": b"err\n"})
        self.assertEqual(events[-1], ("exit", {"exit_code": 1}))

    def test_a_closed_stream_kills_its_command(self):
        stream = self.session.stream(["sh", "-c", "echo $$; exec sleep 600"])
        pid = int(next(stream)[1])
        stream.close()
        # Ends only when the process is gone; a session that kept it would outlive the time limit.
        wait = ["sh", "-c", f"while [ -e /proc/{pid} ]; do sleep 0.05; done"]
        self.session.exec(wait, timeout=60).check()

    def test_files_come_back_as_they_went(self):
        content = bytes(range(256)) * 4096
        for body in (content, io.BytesIO(content)):
            self.session.write_file("/root/a b+ü", body, mode=0o600)
            self.assertEqual(self.session.read_file("/root/a b+ü"), content)
        self.assertEqual(self.session.exec(["stat", "-c", "%a %s", "/root/a b+ü"]).stdout, b"600 1048576\n")
        with self.assertRaises(mayfly.MayflyError) as caught:
            self.session.read_file("/none")
        self.assertEqual((caught.exception.status, caught.exception.code), (404, "not_found"))

    def test_docker_host_leads_to_its_docker(self):
        path = self.session.docker_host[len("unix://"):]
        with socket.socket(socket.AF_UNIX) as docker:
            docker.settimeout(60)
            docker.connect(path)
            docker.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            self.assertIn(b"200 OK", docker.makefile("rb").readline())

    def test_a_session_is_listed_until_it_is_over(self):
        with self.client.create(GOLDEN, ttl=300) as session:
            self.assertIn(session.id, [one.id for one in self.client.list()])
            before = self.client.get(session.id).info["expires_at"]
            session.extend(3000)
            self.assertGreater(session.info["expires_at"], before)
        self.assertNotIn(session.id, [one.id for one in self.client.list()])
        with self.assertRaises(mayfly.MayflyError) as caught:
            session.exec(["true"])
        self.assertEqual((caught.exception.status, caught.exception.code), (410, "session_gone"))
        session.kill()

    def test_a_key_makes_one_session(self):
        key = os.urandom(8).hex()
        with self.client.create(GOLDEN, ttl=300, idempotency_key=key) as session:
            self.assertEqual(self.client.create(GOLDEN, ttl=300, idempotency_key=key).id, session.id)
            with self.assertRaises(mayfly.MayflyError) as caught:
                self.client.create(GOLDEN, ttl=301, idempotency_key=key)
            self.assertEqual(caught.exception.code, "idempotency_conflict")

    def test_background_commands_go_on(self):
        command = self.session.start(["cat"], stdin=True)
        self.assertEqual(self.session.exec(["cat", f"/proc/{command.pid}/comm"]).check().stdout, b"cat\n")
        command.write(b"some ")
        command.write(b"words", eof=True)
        self.assertEqual(command.wait(60), {"exit_code": 0})
        piece = command.output()
        self.assertEqual((piece.offset, piece.data, piece.end), (0, b"some words", True))
        self.assertIn(command.n, [one.n for one in self.session.commands()])
        sleeping = self.session.start(["sleep", "600"])
        self.assertIsNone(sleeping.wait(0.1))
        sleeping.signal(15)
        self.assertEqual(sleeping.wait(60), {"signal": 15})

    def test_folders_and_archives(self):
        self.session.mkdir("/root/a/b", parents=True)
        self.session.write_file("/root/a/b/c", b"content")
        self.assertEqual([entry["name"] for entry in self.session.list_files("/root/a/b")], ["c"])
        self.assertEqual(self.session.stat("/root/a/b/c")["size"], 7)
        archive = b"".join(self.session.get_tar("/root/a"))
        self.session.mkdir("/root/copy")
        self.session.put_tar("/root/copy", io.BytesIO(archive))
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            name = next(member.name for member in tar if member.isfile())
        self.assertEqual(self.session.read_file(os.path.join("/root/copy", name)), b"content")
        self.session.remove("/root/a", recursive=True)
        with self.assertRaises(mayfly.MayflyError):
            self.session.stat("/root/a")

    def test_an_attached_session_goes_with_its_client(self):
        with self.client.create(GOLDEN, attach=True) as session:
            self.assertEqual(session.exec(["echo", "x"]).check().stdout, b"x\n")
        program = f"import mayfly, os; s = mayfly.Client().create({GOLDEN!r}, attach=True); print(s.id, flush=True); os._exit(1)"
        killed = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        session_id = killed.stdout.strip()
        for _ in range(600):
            if session_id not in [one.id for one in self.client.list()]:
                return
            time.sleep(0.1)
        self.fail("the session outlives its client")

    def test_egress_is_replaced(self):
        self.assertNotIn("policy", self.session.set_egress(None))
        self.assertEqual(self.session.egress()["connections_used"], 0)
        with self.assertRaises(mayfly.MayflyError) as caught:
            self.session.set_egress(["not a host"])
        self.assertEqual(caught.exception.status, 422)

    def test_egress_is_asked_for(self):
        with self.assertRaises(mayfly.MayflyError) as caught:
            self.client.create(GOLDEN, egress=["not a host"], egress_bytes=1)
        self.assertEqual(caught.exception.status, 422)
        self.assertIn("egress", str(caught.exception))

    def test_an_unknown_golden_is_said_as_such(self):
        with self.assertRaises(mayfly.MayflyError) as caught:
            self.client.create("none-such")
        self.assertEqual((caught.exception.status, caught.exception.code), (404, "unknown_golden"))
        self.assertIn(GOLDEN, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
