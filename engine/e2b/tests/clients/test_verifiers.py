"""The E2B runtime of verifiers as it comes from PyPI. The daemon is the one that E2B_API_URL names; its templates
have a pattern `vf-*`, which are the names that verifiers gives to images."""

import unittest

from e2b import AsyncSandbox
from verifiers.v1.errors import SandboxError
from verifiers.v1.runtimes import E2BConfig, provision_runtime

EVERY_BYTE = bytes(range(256)) * 20


class Runtime(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        scope = provision_runtime(E2BConfig(image="python:3.11-slim", creates_per_sec=None))
        self.runtime = await self.enterAsyncContext(scope)

    async def test_programs(self):
        script = 'printf "%s|" "$NAME" "$(pwd)" "$(id -u)"; echo why >&2; exit 9'
        ended = await self.runtime.run(["sh", "-c", script], {"NAME": "a b"})
        self.assertEqual((ended.exit_code, ended.stdout, ended.stderr), (9, "a b|/app|0|", "why\n"))
        self.assertTrue(self.runtime.info.template.startswith("vf-"))

    async def test_files(self):
        await self.runtime.write("/srv/new/folder/bytes", EVERY_BYTE)
        self.assertEqual(await self.runtime.read("/srv/new/folder/bytes"), EVERY_BYTE)
        self.assertEqual(await self.runtime.read("/srv/new/folder/bytes", max_bytes=len(EVERY_BYTE)), EVERY_BYTE)
        with self.assertRaises(SandboxError):
            await self.runtime.read("/srv/new/folder/bytes", max_bytes=len(EVERY_BYTE) - 1)
        with self.assertRaises(SandboxError):
            await self.runtime.read("/srv/none")

    async def test_processes(self):
        process = await self.runtime.open_process(["cat"], {})
        await process.write(EVERY_BYTE)
        echoed = b""
        async for piece in process.stdout:
            echoed += piece
            if len(echoed) >= len(EVERY_BYTE):
                break
        self.assertEqual(echoed, EVERY_BYTE)
        self.assertIsNone(await process.poll())
        await process.kill()
        self.assertNotEqual(await process.wait(), 0)
        self.assertTrue(await self.runtime.alive())

    async def test_its_sandbox_ends_with_it(self):
        sandbox = await AsyncSandbox.connect(self.runtime.info.id)
        self.assertTrue(await sandbox.is_running())
        await self.runtime.stop()
        self.assertFalse(await sandbox.is_running())
        self.assertFalse(await self.runtime.alive())


if __name__ == "__main__":
    unittest.main()
