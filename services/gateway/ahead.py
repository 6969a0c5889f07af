"""A client's messages, read a little ahead of what is done with them.

On the path: client → **ahead** → calls → session. While engines are attached to, what the client
has sent with its first message arrives already: so speech that comes with it is spoken from the
first chunk on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")

_MOST = 64  # messages; more wait in the connection, which slows the sender down


class _End:
    pass


@asynccontextmanager
async def read_ahead(messages: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T], None]:
    """The same messages; what has arrived is had without waiting, while entered."""
    queue: asyncio.Queue[T | _End] = asyncio.Queue(_MOST)
    reading = asyncio.create_task(_read(messages, queue))
    try:
        yield _arrived(queue, reading)
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.exception()  # told already, or of no interest any more


async def _read(messages: AsyncIterator[T], queue: asyncio.Queue[T | _End]) -> None:
    try:
        async for message in messages:
            await queue.put(message)
    except Exception:
        await queue.put(_End())
        raise
    await queue.put(_End())


async def _arrived(queue: asyncio.Queue[T | _End], reading: asyncio.Task[None]) -> AsyncIterator[T]:
    while not isinstance(message := await queue.get(), _End):
        yield message
    await reading  # raises what broke it
