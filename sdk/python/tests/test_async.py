"""The async client against a real daemon: skipped unless MAYFLY_SOCKET names its Unix socket."""

import asyncio
import os

import pytest

import mayfly

GOLDEN = os.environ.get("MAYFLY_GOLDEN", "default")
pytestmark = pytest.mark.skipif(not os.environ.get("MAYFLY_SOCKET"), reason="MAYFLY_SOCKET names no daemon")


@pytest.fixture
async def session():
    async with mayfly.AsyncClient() as client, await client.create(GOLDEN, ttl=300, attach=True) as session:
        yield session


async def test_commands_run_beside_each_other(session):
    async def one(n):
        return (await session.exec(["sh", "-c", f"sleep 0.2; echo {n}"])).check().stdout

    assert await asyncio.gather(*[one(n) for n in range(12)]) == [b"%d\n" % n for n in range(12)]
    result = await session.exec(["sh", "-c", "cat; exit 3"], stdin="in")
    assert (result.exit_code, result.stdout) == (3, b"in")


async def test_a_stream_that_is_left_kills_its_command(session):
    stream = session.stream(["sh", "-c", "echo $$; exec sleep 600"])
    kind, pid = await stream.__anext__()
    assert kind == "stdout"
    await stream.aclose()
    wait = ["sh", "-c", f"while [ -e /proc/{int(pid)} ]; do sleep 0.05; done"]
    (await session.exec(wait, timeout=60)).check()


async def test_a_command_that_is_given_up_is_killed(session):
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(session.exec(["sh", "-c", "echo $$ >/tmp/pid; exec sleep 600"]), 1)
    wait = ["sh", "-c", "while [ -e /proc/$(cat /tmp/pid) ]; do sleep 0.05; done"]
    (await session.exec(wait, timeout=60)).check()


async def test_files_and_background_commands(session):
    content = os.urandom(3 << 20)
    await session.write_file("/root/file", content)
    assert await session.read_file("/root/file") == content
    with pytest.raises(ValueError):
        await session.read_file("/root/file", limit=1 << 20)
    command = await session.start(["cat", "/root/file"])
    assert await command.wait(60) == {"exit_code": 0}
    # The last of it is kept.
    output = await command.output(offset=3 << 20)
    assert output.end and output.next_offset == 3 << 20


async def test_sessions_are_made_beside_each_other():
    async with mayfly.AsyncClient() as client:
        sessions = await asyncio.gather(*[client.create(GOLDEN, ttl=300) for _ in range(3)])
        try:
            assert len({session.id for session in sessions}) == 3
            assert {session.id for session in sessions} <= {one.id for one in await client.list()}
        finally:
            await asyncio.gather(*[session.kill() for session in sessions])
