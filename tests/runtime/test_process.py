"""A real process: started from its environment, told to stop by signals."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import grpc
import pytest

from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from talkingmachines.errors import Unavailable
from tests.runtime.echo import EchoStub, text

ROOT = Path(__file__).parents[2]


async def start(**settings: str) -> Process:
    environment = {**os.environ, **{f"TM_ECHO_{k}": v for k, v in settings.items()}}
    command = (sys.executable, "-m", "tests.runtime.echo_process")
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stderr=PIPE)


async def event(process: Process, name: str) -> dict[str, object]:
    """The next log line of that name."""
    assert process.stderr is not None
    async with asyncio.timeout(20):
        async for raw in process.stderr:
            line: dict[str, object] = json.loads(raw)
            if line["event"] == name:
                return line
    raise AssertionError(f"it ended without saying {name!r}")


@asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[tuple[Process, EchoStub]]:
    process = await start(LISTEN__NOTICE_SECONDS="0", **settings)
    try:
        port = (await event(process, "serving"))["port"]
        async with open_channel(Peer(address=f"127.0.0.1:{port}")) as channel:
            yield process, EchoStub(channel)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_the_process_ends_with_its_last_stream(number: int) -> None:
    async with serving(LISTEN__DRAIN_SECONDS="30") as (process, stub):
        call = stub.chat()
        await call.write(text("before"))
        assert await call.read() == text("before")
        process.send_signal(number)
        await event(process, "draining")
        for n in range(5):
            await call.write(text(f"during {n}"))
            assert await call.read() == text(f"during {n}")
        assert process.returncode is None
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        async with asyncio.timeout(3):
            assert await process.wait() == 0


async def test_a_second_signal_ends_at_once() -> None:
    async with serving(LISTEN__DRAIN_SECONDS="600") as (process, stub):
        call = stub.chat()
        await call.write(text("before"))
        assert await call.read() == text("before")
        process.send_signal(signal.SIGTERM)
        await event(process, "draining")
        began = monotonic()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(Unavailable, match="ending"):
            await call.read()
        assert await process.wait() == 0
        assert monotonic() - began < 20  # of 600, on however busy a machine


async def test_a_stream_that_overstays_a_process_is_told() -> None:
    async with serving(LISTEN__DRAIN_SECONDS="0.3") as (process, stub):
        call = stub.chat()
        await call.write(text("before"))
        assert await call.read() == text("before")
        process.send_signal(signal.SIGTERM)
        with pytest.raises(Unavailable, match="ending"):
            await call.read()
        assert await process.wait() == 0


async def test_wrong_settings_end_the_process_with_all_mistakes() -> None:
    process = await start(LISTEN__PORT="tcp://10.0.0.1:1", COLOUR="red")
    assert process.stderr is not None
    told = (await process.stderr.read()).decode()
    assert await process.wait() != 0
    assert "TM_ECHO_LISTEN__PORT" in told
    assert "TM_ECHO_COLOUR: no such setting" in told
