"""E2B's Python SDK, as it comes from PyPI, against a daemon whose address and key the environment has."""

import asyncio
import os
import time
import unittest
import urllib.error
import urllib.request

import e2b
from e2b import AsyncSandbox, Sandbox
from e2b.sandbox.commands.command_handle import PtySize

URL = os.environ["E2B_SANDBOX_URL"]


def fetch(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class InSandbox(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sandbox = Sandbox.create(timeout=300, envs={"A": "1"}, metadata={"test": "in sandbox"})
        cls.addClassCleanup(cls.sandbox.kill)

    def run_in(self, command, **options):
        return self.sandbox.commands.run(command, **options)

    def test_commands(self):
        result = self.run_in("echo out; echo err >&2; echo $A $B; pwd", envs={"B": "2"}, cwd="/tmp")
        self.assertEqual((result.stdout, result.stderr), ("out\n1 2\n/tmp\n", "err\n"))
        self.assertEqual((result.exit_code, result.error), (0, None))
        for user in ["root", None]:
            name = self.run_in("id -un; echo $USER $LOGNAME; cd; pwd", user=user).stdout.split()
            self.assertEqual(name[:3], [name[0]] * 3)
            self.assertEqual(name[3], "/root" if name[0] == "root" else "/home/" + name[0])

    def test_ends_of_commands(self):
        with self.assertRaises(e2b.CommandExitException) as failed:
            self.run_in("echo before; exit 3")
        self.assertEqual((failed.exception.exit_code, failed.exception.stdout), (3, "before\n"))
        self.assertEqual(failed.exception.error, "exit status 3")
        with self.assertRaises(e2b.CommandExitException) as killed:
            self.run_in("kill -KILL $$")
        self.assertEqual((killed.exception.exit_code, killed.exception.error), (-1, "signal: killed"))
        with self.assertRaises(e2b.TimeoutException):
            self.run_in("sleep 60", timeout=1)
        with self.assertRaises(e2b.InvalidArgumentException):
            self.run_in("true", cwd="/no/such/directory")
        with self.assertRaises(e2b.AuthenticationException):
            self.run_in("true", user="nobody-of-that-name")

    def test_input(self):
        command = self.run_in("cat; echo end", background=True, stdin=True)
        self.sandbox.commands.send_stdin(command.pid, "a\n")
        command.send_stdin(b"b" * 200_000)
        command.close_stdin()
        self.assertEqual(command.wait().stdout, "a\n" + "b" * 200_000 + "end\n")
        command = self.run_in("cat", background=True, stdin=True)
        self.sandbox.commands.stream_input(command.pid, (f"{n}\n" for n in range(100)))
        command.close_stdin()
        self.assertEqual(command.wait().stdout, "".join(f"{n}\n" for n in range(100)))

    def test_much_output(self):
        result = self.run_in("head -c 3000000 /dev/zero | tr '\\0' x; echo; seq 20000 >&2")
        self.assertEqual(len(result.stdout), 3_000_001)
        self.assertEqual(result.stderr, "".join(f"{n}\n" for n in range(1, 20_001)))

    def test_background_commands(self):
        command = self.run_in("while ! [ -e /tmp/go ]; do sleep 0.05; done; echo went", background=True)
        self.assertIn(command.pid, [process.pid for process in self.sandbox.commands.list()])
        self.run_in(f"kill -0 {command.pid}", user="root")
        command.disconnect()
        again, third = (self.sandbox.commands.connect(command.pid) for _ in range(2))
        self.run_in("touch /tmp/go")
        self.assertEqual((again.wait().stdout, third.wait().stdout), ("went\n", "went\n"))
        self.assertNotIn(command.pid, [process.pid for process in self.sandbox.commands.list()])
        self.assertFalse(self.sandbox.commands.kill(command.pid))
        with self.assertRaises(e2b.NotFoundException):
            self.sandbox.commands.connect(command.pid)
        endless = self.run_in("sleep 1000", background=True)
        self.assertTrue(endless.kill())
        with self.assertRaises(e2b.CommandExitException):
            endless.wait()
        self.run_in("(while true; do echo hi; sleep 0.2; done) & echo $! > /tmp/loop")
        self.run_in("sleep 1; kill -0 $(cat /tmp/loop) && kill $(cat /tmp/loop)")

    def test_terminal(self):
        terminal = self.sandbox.pty.create(PtySize(rows=24, cols=80))
        self.sandbox.pty.resize(terminal.pid, PtySize(rows=50, cols=132))
        self.sandbox.pty.send_stdin(terminal.pid, b"stty size; echo $((40+2)); exit 7\n")
        output = []
        with self.assertRaises(e2b.CommandExitException) as ended:
            terminal.wait(on_pty=lambda piece: output.append(bytes(piece)))
        self.assertEqual(ended.exception.exit_code, 7)
        text = b"".join(output)
        self.assertIn(b"50 132", text)
        self.assertIn(b"42", text)

    def test_files(self):
        files = self.sandbox.files
        home = self.run_in("cd; pwd").stdout.strip()
        self.assertEqual(files.write("x/y z.txt", "hello").path, f"{home}/x/y z.txt")
        self.assertEqual(files.read(f"{home}/x/y z.txt"), "hello")
        self.assertEqual([(e.name, e.path) for e in files.list("x")], [("y z.txt", f"{home}/x/y z.txt")])
        owner = self.run_in("id -un").stdout.strip()
        info = files.get_info("x/y z.txt")
        self.assertEqual((info.size, info.owner, info.permissions), (5, owner, "-rw-r--r--"))
        self.run_in("chmod 750 'x/y z.txt'; ln 'x/y z.txt' x/link", cwd=home)
        files.write("x/y z.txt", "again")
        self.assertEqual(files.read("x/link"), "again")
        self.assertEqual(files.get_info("x/link").mode, 0o750)
        self.assertTrue(files.exists("x/link") and not files.exists("x/none"))
        self.assertTrue(files.make_dir("x/a/b"))
        self.assertFalse(files.make_dir("x/a/b"))
        self.assertEqual(files.rename("x/link", "x/new/moved").path, f"{home}/x/new/moved")
        names = sorted(e.path.removeprefix(home) for e in files.list("x", depth=3))
        self.assertEqual(names, ["/x/a", "/x/a/b", "/x/new", "/x/new/moved", "/x/y z.txt"])
        self.run_in("ln -s a x/symbolic", cwd=home)
        link = files.get_info("x/symbolic")
        self.assertEqual((link.symlink_target, link.permissions), (f"{home}/x/a", "Lrwxrwxrwx"))
        files.remove("x")
        files.remove("x")
        for missing in [lambda: files.read("x/y"), lambda: files.list("x"), lambda: files.get_info("x")]:
            with self.assertRaises(e2b.FileNotFoundException):
                missing()
        with self.assertRaises(e2b.InvalidArgumentException):
            files.read("/tmp")

    def test_contents(self):
        files = self.sandbox.files
        content = os.urandom(3_000_000)
        files.write("/tmp/big", content)
        self.assertEqual(bytes(files.read("/tmp/big", format="bytes")), content)
        self.assertEqual(b"".join(files.read("/tmp/big", format="stream")), content)
        files.write("/tmp/zipped", content, gzip=True)
        self.assertEqual(bytes(files.read("/tmp/zipped", format="bytes", gzip=True)), content)
        entries = [{"path": f"/tmp/many/{n}", "data": str(n) * n} for n in range(30)]
        self.assertEqual(len(files.write_files(entries)), 30)
        self.assertEqual(files.read("/tmp/many/29"), "29" * 29)
        files.write("/tmp/labelled", "x", metadata={"kind": "a", "more": "b"})
        self.assertEqual(files.get_info("/tmp/labelled").metadata, {"kind": "a", "more": "b"})
        files.write("/tmp/labelled", "x", metadata={"kind": "c"})
        self.assertEqual(files.get_info("/tmp/labelled").metadata, {"kind": "c"})

    def test_signed_links(self):
        self.sandbox.files.write("/tmp/linked file", "content")
        link = self.sandbox.download_url("/tmp/linked file", use_signature_expiration=60)
        self.assertEqual(fetch(link), (200, b"content"))
        self.assertEqual(fetch(link, Range="bytes=2-4"), (206, b"nte"))
        other = link.replace("linked", "other")
        self.assertEqual(fetch(other)[0], 401)
        expired = self.sandbox.download_url("/tmp/linked file", use_signature_expiration=-5)
        self.assertEqual(fetch(expired)[0], 401)

    def test_watches(self):
        files = self.sandbox.files
        files.make_dir("/tmp/watched")
        watch = files.watch_dir("/tmp/watched")
        files.write("/tmp/watched/a", "1")
        kinds = {(event.name, event.type.name) for event in watch.get_new_events()}
        self.assertTrue({("a", "CREATE"), ("a", "WRITE")} <= kinds, kinds)
        files.write("/tmp/watched/a", "2")
        self.assertIn(("a", "WRITE"), [(e.name, e.type.name) for e in watch.get_new_events()])
        self.run_in("chmod 600 a; mv a b; rm b", cwd="/tmp/watched", user="root")
        events = [(event.name, event.type.name) for event in watch.get_new_events()]
        for wanted in [("a", "CHMOD"), ("a", "RENAME"), ("b", "REMOVE")]:
            self.assertIn(wanted, events)
        watch.stop()

    def test_servers(self):
        self.run_in("mkdir -p /tmp/www && echo hello > /tmp/www/page")
        server = self.run_in("python3 -m http.server 8000 -d /tmp/www", background=True)
        self.addCleanup(server.kill)
        headers = {"E2b-Sandbox-Id": self.sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
        for _ in range(200):
            answer = fetch(f"{URL}/page", **headers)
            if answer[0] != 502:
                break
            time.sleep(0.1)
        self.assertEqual(answer, (200, b"hello\n"))
        host = self.sandbox.get_host(8000)
        self.assertEqual(fetch(f"{URL}/page", Host=host), (200, b"hello\n"))
        status, body = fetch(f"{URL}/", Host=self.sandbox.get_host(8001))
        self.assertEqual((status, b"port is not open" in body), (502, True))

    def test_figures(self):
        figures = self.sandbox.get_metrics()
        self.assertTrue(figures[0].mem_total > figures[0].mem_used > 0)
        info = self.sandbox.get_info()
        self.assertEqual(info.metadata, {"test": "in sandbox"})
        self.assertTrue(info.cpu_count >= 1 and info.memory_mb > 0)


class Sandboxes(unittest.TestCase):
    def create(self, **options):
        sandbox = Sandbox.create(timeout=120, **options)
        self.addCleanup(sandbox.kill)
        return sandbox

    def test_life(self):
        sandbox = self.create(metadata={"test": "life"})
        running = sandbox.commands.run("sleep 100", background=True)
        end = sandbox.get_info().end_at
        sandbox.set_timeout(1000)
        self.assertGreater(sandbox.get_info().end_at, end)
        same = Sandbox.connect(sandbox.sandbox_id, timeout=5)
        self.assertGreater(same.get_info().end_at, end)
        self.assertEqual(same.commands.run("echo same").stdout, "same\n")
        self.assertTrue(sandbox.is_running() and sandbox.kill())
        self.assertFalse(sandbox.is_running() or sandbox.kill())
        for use in [running.wait, lambda: sandbox.commands.run("true"), lambda: sandbox.files.read("x")]:
            with self.assertRaises(e2b.TimeoutException):
                use()
        with self.assertRaises(e2b.NotFoundException):
            sandbox.get_info()

    def test_lists(self):
        made = [self.create(metadata={"test": "list ü", "n": str(n)}).sandbox_id for n in range(3)]
        query = e2b.SandboxQuery(metadata={"test": "list ü"})
        pages, found = Sandbox.list(query=query, limit=2), []
        while pages.has_next:
            found += [sandbox.sandbox_id for sandbox in pages.next_items()]
        self.assertEqual(found, made[::-1])
        second = e2b.SandboxQuery(metadata={"test": "list ü", "n": "1"})
        self.assertEqual([s.sandbox_id for s in Sandbox.list(query=second).next_items()], made[1:2])

    def test_private_ports(self):
        sandbox = self.create(network={"allow_public_traffic": False})
        server = sandbox.commands.run("python3 -m http.server 8000 -d /tmp", background=True)
        self.addCleanup(server.disconnect)
        host = sandbox.get_host(8000)
        self.assertEqual(fetch(URL, Host=host)[0], 403)
        token = {"E2B-Traffic-Access-Token": sandbox.traffic_access_token}
        for _ in range(200):
            status, _ = fetch(URL, Host=host, **token)
            if status != 502:
                break
            time.sleep(0.1)
        self.assertEqual(status, 200)

    def test_what_is_refused(self):
        sandbox = self.create()
        with self.assertRaises(e2b.AuthenticationException):
            Sandbox.create(api_key="e2b_" + "0" * 40)
        with self.assertRaises(e2b.SandboxException) as missing:
            Sandbox.create("no-such-template")
        self.assertEqual(missing.exception.status_code, 404)
        with self.assertRaises(e2b.SandboxException) as pause:
            sandbox.pause()
        self.assertEqual(pause.exception.status_code, 501)
        stranger = {"E2b-Sandbox-Id": sandbox.sandbox_id, "X-Access-Token": "0" * 64}
        self.assertEqual(fetch(f"{URL}/files?path=/etc/passwd", **stranger)[0], 401)

    def test_one_key_makes_one_sandbox(self):
        one = self.create(idempotency_key="key-" + os.urandom(8).hex())
        self.assertTrue(one.is_running())

    def test_async(self):
        asyncio.run(self.in_async())

    async def in_async(self):
        sandbox = await AsyncSandbox.create(timeout=120)
        try:
            results = await asyncio.gather(*(sandbox.commands.run(f"echo {n}") for n in range(20)))
            self.assertEqual([result.stdout for result in results], [f"{n}\n" for n in range(20)])
            with self.assertRaises(e2b.TimeoutException):
                await sandbox.commands.run("sleep 60", timeout=1)
            seen = asyncio.Event()
            await sandbox.files.make_dir("/tmp/watched")
            watch = await sandbox.files.watch_dir("/tmp/watched", on_event=lambda event: seen.set())
            await sandbox.files.write("/tmp/watched/a", "1")
            await asyncio.wait_for(seen.wait(), 60)
            await watch.stop()
        finally:
            await sandbox.kill()


if __name__ == "__main__":
    unittest.main()
