"""What a replica does whatever it computes: slots, ages, asks to be left, dies.

Orders come from the test; requests from the wire; both reach a running attachment in one queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from talkingmachines import duration
from talkingmachines.errors import NoCapacity, TalkingMachinesError, Unavailable
from talkingmachines.v1 import media_pb2

Q = TypeVar("Q")
T = TypeVar("T")


@dataclass
class Replica:
    """Control of a fake engine, and what it counted."""

    name: str = "fake"
    slots: int = 1_000
    max_age: float | None = None  # seconds until it asks to be left
    time_left: float = 5.0  # that it then grants
    work_seconds: float = 0.0  # per chunk
    attach_seconds: float = 0.0  # until an attachment stands
    refusal: TalkingMachinesError | None = None  # what attaching is answered with
    attached: int = 0  # attachments ever made
    refused: int = 0  # for want of a slot
    chunks: int = 0  # ever computed
    metadata: dict[str, str] = field(default_factory=dict)  # that the last attachment came with
    _running: set[Attachment[Any]] = field(default_factory=set)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def capacity(self) -> media_pb2.Capacity:
        return media_pb2.Capacity(sessions=self.running, slots=self.slots)

    def kill(self, error: TalkingMachinesError | None = None) -> None:
        """End every attachment, as a killed process would."""
        for attachment in self._running:
            attachment.die(error or Unavailable("killed", retry_after=0))

    def ask_to_leave(
        self, reason: media_pb2.HandOverReason.ValueType, *, time_left: float = 5.0
    ) -> None:
        for attachment in self._running:
            attachment.order(reason, time_left)

    def called_with(self, context: Any) -> None:
        """Note the metadata of a call; `context` is None within the process."""
        if context is not None:
            self.metadata = dict(context.invocation_metadata())

    def attachment(self, requests: AsyncIterator[Q]) -> Attachment[Q]:
        return Attachment(self, requests)


class Attachment(Generic[Q]):
    """One attachment's requests and orders, in the order in which they come."""

    def __init__(self, replica: Replica, requests: AsyncIterator[Q]) -> None:
        self._replica = replica
        self._requests = requests
        self._queue: asyncio.Queue[Q | media_pb2.HandOver | None] = asyncio.Queue()
        self._dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Attachment[Q]:
        if self._replica.refusal is not None:
            raise self._replica.refusal
        if self._replica.running >= self._replica.slots:
            self._replica.refused += 1
            raise NoCapacity("an attachment", retry_after=0.1)
        await asyncio.sleep(self._replica.attach_seconds)
        self._replica.attached += 1
        self._replica._running.add(self)
        self._tasks = [asyncio.create_task(self._pump())]
        if self._replica.max_age is not None:
            self._tasks.append(asyncio.create_task(self._grow_old(self._replica.max_age)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._replica._running.discard(self)
        self._dead.cancel()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    def die(self, error: TalkingMachinesError) -> None:
        if not self._dead.done():
            self._dead.set_exception(error)

    def order(self, reason: media_pb2.HandOverReason.ValueType, time_left: float) -> None:
        self._queue.put_nowait(
            media_pb2.HandOver(reason=reason, time_left=duration.to_proto(time_left))
        )

    async def events(self) -> AsyncIterator[Q | media_pb2.HandOver]:
        """Requests and hand-overs; ends with the requests.

        Raises:
            TalkingMachinesError: it was killed, or its time is over.
        """
        while (event := await self._unless_dead(self._queue.get())) is not None:
            yield event

    async def work(self) -> None:
        """Take the time that a chunk takes."""
        await self._unless_dead(asyncio.sleep(self._replica.work_seconds))
        self._replica.chunks += 1

    async def _unless_dead(self, what: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(what)
        try:
            both: set[asyncio.Future[Any]] = {task, self._dead}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self._dead.done():
                self._dead.result()
            return await task
        finally:
            task.cancel()

    async def _pump(self) -> None:
        async for request in self._requests:
            self._queue.put_nowait(request)
        self._queue.put_nowait(None)

    async def _grow_old(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.order(media_pb2.HAND_OVER_REASON_AGE, self._replica.time_left)
        await asyncio.sleep(self._replica.time_left)
        self.die(Unavailable("its time is over", retry_after=0))


class LocalCall(Generic[Q]):
    """A servicer's stream, called within the process: for tests whose time is virtual."""

    def __init__(self, replies: AsyncIterator[Q]) -> None:
        self._replies = replies
        self._task: asyncio.Task[None] | None = None
        self._queue: asyncio.Queue[object] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Q]:
        self._task = asyncio.create_task(self._run())
        while (reply := await self._queue.get()) is not None:
            if isinstance(reply, TalkingMachinesError):
                raise reply
            yield reply  # type: ignore[misc]

    def cancel(self) -> bool:
        return self._task is not None and self._task.cancel()

    async def _run(self) -> None:
        try:
            async with aclosing(self._replies) as replies:  # type: ignore[type-var]
                async for reply in replies:
                    self._queue.put_nowait(reply)
            self._queue.put_nowait(None)
        except TalkingMachinesError as error:
            self._queue.put_nowait(error)
        except asyncio.CancelledError:
            self._queue.put_nowait(Unavailable("cancelled", retry_after=0))
            raise
