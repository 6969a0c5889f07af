"""A peer that vanishes without a word: no FIN, no reset, as when a network is unplugged."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from talkingmachines.channel import Limits
from talkingmachines.errors import Unavailable
from tests.runtime.echo import Context, Echo, EchoStub, Texts, running, text

QUICK = Limits(keepalive_seconds=1.0, keepalive_timeout_seconds=0.5)


class Cable:
    """Forwards a connection until it is unplugged; then swallows everything."""

    def __init__(self, port: int) -> None:
        self.plugged = True
        self._port = port
        self._ends: list[asyncio.StreamWriter] = []
        self._flows: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for end in self._ends:
                end.close()
            for flow in self._flows:
                flow.cancel()
            await asyncio.gather(*self._flows, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._ends += [writer, far_writer]
        for flow in (self._forward(reader, far_writer), self._forward(far_reader, writer)):
            self._flows.append(asyncio.create_task(flow))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            if self.plugged:
                writer.write(piece)


class Watched(Echo):
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def chat(self, requests: Texts, context: Context) -> Texts:
        try:
            async for request in requests:
                yield request
        finally:
            self.ended.set()


async def test_both_ends_notice_within_a_ping_and_its_time_to_answer() -> None:
    echo = Watched()
    async with running(echo, limits=QUICK) as there:
        cable = Cable(there.server.port)
        async with (
            cable.laid() as address,
            open_channel(Peer(address=address, limits=QUICK)) as channel,
        ):
            call = EchoStub(channel).chat()
            await call.write(text("x"))
            assert await call.read() == text("x")
            cable.plugged = False
            async with asyncio.timeout(4):
                with pytest.raises(Unavailable):
                    await call.read()
                await echo.ended.wait()


async def test_a_quiet_connection_is_kept_and_its_pings_are_welcome() -> None:
    async with running(limits=QUICK) as there, there.channel(limits=QUICK) as channel:
        call = EchoStub(channel).chat()
        await call.write(text("x"))
        assert await call.read() == text("x")
        await asyncio.sleep(4.5)  # gRPC's own server turns away the third early ping
        await call.write(text("y"))
        assert await call.read() == text("y")
        call.cancel()
