// E2B's JavaScript SDK, as it comes from npm, against a daemon whose address and key the environment has.

import assert from 'node:assert/strict'
import { CommandExitError, Sandbox, TimeoutError } from 'e2b'

const sandbox = await Sandbox.create({ timeoutMs: 300_000, envs: { A: '1' }, metadata: { test: 'javascript' } })
try {
  const home = (await sandbox.commands.run('cd; pwd')).stdout.trim()
  const result = await sandbox.commands.run('echo out; echo err >&2; echo $A')
  assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n1\n', 'err\n', 0])
  await assert.rejects(sandbox.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
  await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 1000 }), TimeoutError)

  const command = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(command.pid, 'abc\n')
  await sandbox.commands.closeStdin(command.pid)
  assert.equal((await command.wait()).stdout, 'abc\n')

  await sandbox.files.write('j/a.txt', 'hello')
  assert.equal(await sandbox.files.read(`${home}/j/a.txt`), 'hello')
  assert.deepEqual((await sandbox.files.list('j')).map((file) => file.path), [`${home}/j/a.txt`])
  await sandbox.files.write([{ path: '/tmp/m/1', data: '1' }, { path: '/tmp/m/2', data: new Blob(['22']) }])
  assert.equal(await sandbox.files.read('/tmp/m/2'), '22')
  assert.equal(await sandbox.files.exists('/tmp/m/3'), false)

  let watched
  const seen = new Promise((resolve) => (watched = resolve))
  const watch = await sandbox.files.watchDir('j', (event) => event.name === 'b' && watched(event.type))
  await sandbox.files.write('j/b', '1')
  assert.ok(['create', 'write'].includes(await seen))
  await watch.stop()

  let typed = ''
  const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: (data) => (typed += new TextDecoder().decode(data)) })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('echo $((40+2)); exit 0\n'))
  assert.equal((await terminal.wait()).exitCode, 0)
  assert.match(typed, /42/)

  assert.equal(await (await fetch(await sandbox.downloadUrl('j/a.txt'))).text(), 'hello')
  const form = new FormData()
  form.append('file', new Blob(['uploaded']), 'name')
  const upload = await fetch(await sandbox.uploadUrl('/tmp/up/loaded'), { method: 'POST', body: form })
  assert.equal(upload.status, 200)
  assert.equal(await sandbox.files.read('/tmp/up/loaded'), 'uploaded')

  const same = await Sandbox.connect(sandbox.sandboxId)
  assert.equal((await same.commands.run('echo same')).stdout, 'same\n')
  assert.equal((await sandbox.getInfo()).metadata.test, 'javascript')
} finally {
  assert.equal(await sandbox.kill(), true)
}
assert.equal(await sandbox.isRunning(), false)
