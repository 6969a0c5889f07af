"""What breaks on purpose: processes of this test's own, and a line to a server of its own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from loadtest.book import Book
from loadtest.faults import Due, Wounds
from loadtest.processes import descendants, memory_mb, of_part
from loadtest.scenario import Disturb, Fault, Freeze, Kill, Line, Part, Range
from loadtest.wire import Wire
from tests.gateway.fleet import eventually

# Holds 50 MB of its own, and looks like a part by its command line.
_IDLE = "import sys; held = b'x' * 50_000_000; print(flush=True); sys.stdin.read()"
_SECOND = Range(least=1, most=1)


@asynccontextmanager
async def part(sign: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _IDLE, sign, stdin=-1, stdout=-1
    )
    assert process.stdout is not None
    await process.stdout.readline()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def state(pid: int) -> str:
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]


def wounds(**wires: Wire) -> Wounds:
    book = Book(asyncio.get_running_loop().time)
    return Wounds(os.getpid(), {Line(name): wire for name, wire in wires.items()}, book)


async def suffered(on: Wounds, fault: Fault, seconds: float) -> None:
    await on.suffer([Due(0.0, fault, seconds)], random.Random(1))


async def test_what_is_killed_is_of_the_part_that_was_meant() -> None:
    async with part("services.llm_bridge") as bridge, part("services.gateway") as gateway:
        assert of_part(os.getpid(), Part.BRIDGE) == [bridge.pid]
        assert memory_mb(os.getpid())[f"bridge {bridge.pid}"] > 45
        hurt = wounds()
        await suffered(hurt, Kill(do="kill", part=Part.BRIDGE), 0.0)
        assert await bridge.wait() == -signal.SIGKILL
        assert gateway.returncode is None
        assert of_part(os.getpid(), Part.BRIDGE) == []
        assert gateway.pid in descendants(os.getpid())
        # Nobody is left of it: that is told, and nobody else pays.
        await suffered(hurt, Kill(do="kill", part=Part.BRIDGE), 0.0)
    assert [one.what for one in hurt.book.injuries] == [
        "bridge killed",
        "bridge is not there to be killed",
    ]


async def test_what_is_frozen_goes_on_even_when_the_run_ends_first() -> None:
    async with part("services.gateway") as gateway:
        freeze = Freeze(do="freeze", part=Part.GATEWAY, seconds=_SECOND)
        running = asyncio.create_task(suffered(wounds(), freeze, 60.0))
        await eventually(lambda: state(gateway.pid) == "T")
        running.cancel()
        await asyncio.wait({running})
        assert state(gateway.pid) != "T"


@asynccontextmanager
async def echoing() -> AsyncIterator[Wire]:
    """A line to a server that says back what it is told."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(100_000):
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with Wire(("127.0.0.1", server.sockets[0].getsockname()[1])) as wire:
        yield wire
    server.close()


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(wire: Wire) -> AsyncIterator[Ends]:
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def said_back(ends: Ends, what: bytes, *, within: float = 5.0) -> bytes:
    reader, writer = ends
    writer.write(what)
    async with asyncio.timeout(within):
        return await reader.readexactly(len(what))


async def test_a_line_carries_everything_and_is_slow_silent_or_cut_when_told() -> None:
    clock = asyncio.get_running_loop().time
    async with echoing() as wire, connected(wire) as ends:
        much = random.Random(1).randbytes(3_000_000)
        assert await said_back(ends, much) == much

        hurt = wounds(engines=wire)
        slow = Disturb(do="delay", line=Line.ENGINES, seconds=_SECOND, delay_ms=150)
        running = asyncio.create_task(suffered(hurt, slow, 1.0))
        await asyncio.sleep(0.05)
        began = clock()
        await said_back(ends, b"there and back")
        assert clock() - began >= 0.3
        await running

        held = Disturb(do="hold", line=Line.ENGINES, seconds=_SECOND)
        running = asyncio.create_task(suffered(hurt, held, 0.5))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await said_back(ends, b"late", within=0.2)
        await running
        assert await ends[0].readexactly(4) == b"late"  # nothing is lost

        cut = Disturb(do="cut", line=Line.ENGINES, seconds=_SECOND)
        running = asyncio.create_task(suffered(hurt, cut, 0.5))
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionResetError):
            await ends[0].read(1)
        async with connected(wire) as refused:
            assert not await refused[0].read(1)
        await running
        async with connected(wire) as again:
            assert await said_back(again, b"hello") == b"hello"
