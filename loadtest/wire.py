"""A TCP line of our own between two ends, that can be cut, held or made slow while it is used.

The kernel's own means (netem) need rights and modules that containers seldom have; this needs none
and hurts nobody else's traffic. Cutting resets connections and refuses new ones; holding keeps them
open and moves nothing, as when a cable is pulled; what was held comes afterwards.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from socket import SO_LINGER, SOL_SOCKET
from typing import Self

_PIECE = 64 * 1024  # bytes read at once
_WAITING = 64  # pieces on their way in one direction
_RESET = struct.pack("ii", 1, 0)  # closing tells the other end that the connection is broken
LOOPBACK = "127.0.0.1"


class Wire:
    """Listens while entered and carries what comes to `target` and back.

    Args:
        target: host and port.
        port: to listen on; 0: any free one.
    """

    def __init__(self, target: tuple[str, int], *, port: int = 0) -> None:
        self._target = target
        self._wished = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self._delay = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self._wished)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._break()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def cut(self) -> None:
        """Break all connections, and refuse new ones until `mend`."""
        self._refuses = True
        self._break()

    def hold(self) -> None:
        """Let nothing pass until `mend`; nobody is told."""
        self._flows.clear()

    def slow(self, seconds: float) -> None:
        """Let everything take so much longer each way until `mend`."""
        self._delay = seconds

    def mend(self) -> None:
        self._refuses = False
        self._delay = 0.0
        self._flows.set()

    def _break(self) -> None:
        for writer in self._writers:
            writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if not self._refuses:
                # Cancelled when the line is no more; asyncio's streams would complain of that.
                with suppress(OSError, asyncio.CancelledError):
                    await self._carry(reader, writer)
        finally:
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flows.wait()
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers.add(far_writer)
        ways = [
            asyncio.create_task(self._way(reader, far_writer)),
            asyncio.create_task(self._way(far_reader, writer)),
        ]
        try:
            # One end that is gone is gone for both: gRPC never closes half a connection.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await self._flows.wait()  # the other end is not told while nothing passes
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            far_writer.close()
            self._writers.discard(far_writer)

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING)
        reading = asyncio.create_task(self._read(reader, queue))
        clock = asyncio.get_running_loop().time
        try:
            while True:
                due, piece = await queue.get()
                await asyncio.sleep(due - clock())
                await self._flows.wait()
                if not piece:
                    return
                writer.write(piece)
                await writer.drain()
        finally:
            reading.cancel()

    async def _read(
        self, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        clock = asyncio.get_running_loop().time
        piece = b"more"
        while piece:
            with suppress(ConnectionError):
                piece = await reader.read(_PIECE)
                await queue.put((clock() + self._delay, piece))
                continue
            piece = b""
            await queue.put((clock(), piece))
