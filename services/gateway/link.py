"""The wire of one attachment: a bidirectional call, header first.

On the path: attachment → **link** → score or vae. Sending never waits: what is under way is
bounded by the lead that the pacer allows. Whatever happens on the wire is told to one listener.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from talkingmachines.errors import TalkingMachinesError, Unavailable

Q = TypeVar("Q")  # what is sent
R = TypeVar("R")  # what is received

R_co = TypeVar("R_co", covariant=True)

_FAREWELL_SECONDS = 2.0  # for a replica to end its side after we ended ours


class Call(Protocol[R_co]):
    """A running call, as the stubs of a channel that raises domain errors give it."""

    def __aiter__(self) -> AsyncIterator[R_co]: ...
    def cancel(self) -> Any: ...


class Link(Generic[Q, R]):
    """One attachment, from its first message to its end.

    Args:
        connect: starts the call; gets the requests.
        next_chunk: the chunk that the attachment goes on with.
        version: of the log's tail that it was made with; rewinds count it up.
    """

    def __init__(
        self,
        connect: Callable[[AsyncIterator[Q]], Call[R]],
        *,
        next_chunk: int,
        version: int,
    ) -> None:
        self.next_chunk = next_chunk
        self.version = version
        self._requests: asyncio.Queue[Q | None] = asyncio.Queue()
        self._call = connect(self._sent())
        self._replies = aiter(self._call)
        self._listening: asyncio.Task[None] | None = None

    def send(self, request: Q) -> None:
        self._requests.put_nowait(request)

    async def first(self) -> R:
        """The reply that says the attachment stands.

        Raises:
            TalkingMachinesError: the replica refused or cannot be reached.
        """
        try:
            return await anext(self._replies)
        except StopAsyncIteration:
            raise _ended() from None

    def listen(self, heard: Callable[[R | TalkingMachinesError], None]) -> asyncio.Task[None]:
        """Tell `heard` every further reply, and at last why there are no more."""
        self._listening = asyncio.create_task(self._listen(heard))
        return self._listening

    async def leave(self) -> None:
        """Half-close and let the replica end; returns when its slot is free or it was cut off."""
        self._requests.put_nowait(None)
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                if self._listening is not None:
                    await asyncio.shield(self._listening)
        except TimeoutError:
            pass
        finally:
            self.cut()

    def cut(self) -> None:
        """End it without a word."""
        if self._listening is not None:
            self._listening.cancel()
        self._call.cancel()
        self._requests.put_nowait(None)  # a call that is over leaves whoever reads them waiting

    async def _sent(self) -> AsyncIterator[Q]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _listen(self, heard: Callable[[R | TalkingMachinesError], None]) -> None:
        with suppress(asyncio.CancelledError):
            try:
                async for reply in self._replies:
                    heard(reply)
            except TalkingMachinesError as error:
                heard(error)
            else:
                heard(_ended())


def _ended() -> TalkingMachinesError:
    return Unavailable("the replica ended the attachment", retry_after=0.0)
