"""One session's attachment to one kind of engine: score or VAE, the same for both.

On the path: log → **attachment** → link → engine, and back. An attachment is a cache over the
log: losing it costs time and nothing else. Changing it is normal. When a replica asks us to leave,
the next attachment is made before this one is left, at a chunk boundary; when one dies, the next
is made from the log's tail and what was under way is asked for again. Chunks are functions of the
log, so whoever answers gives the same answer.

Everything that happens (work given, replies, losses, new attachments) is an event in one queue,
and one coroutine reacts to it; so nothing here races.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Generic

import structlog

from services.gateway.attaching import Attaching, Going, Patience, Refused, Seen
from services.gateway.chunk import Rewind
from services.gateway.link import Link
from services.gateway.log import SessionLog
from services.gateway.spans import Spans
from services.gateway.wires import A, Due, I, Wire
from services.runtime.metrics import GatewayMetrics, HandOverReason, Outcome
from talkingmachines import duration
from talkingmachines.errors import BadInput, EngineFailure, TalkingMachinesError, TimedOut
from talkingmachines.v1 import media_pb2

_log = structlog.stdlib.get_logger(__name__)

_NEWEST = 0.2  # weight of the newest chunk in the mean time
_REASONS = {
    media_pb2.HAND_OVER_REASON_AGE: HandOverReason.AGE,
    media_pb2.HAND_OVER_REASON_DRAINING: HandOverReason.DRAIN,
    media_pb2.HAND_OVER_REASON_OVERLOADED: HandOverReason.OVERLOAD,
    media_pb2.HAND_OVER_REASON_UNHEALTHY: HandOverReason.UNHEALTHY,
}


@dataclass(frozen=True, slots=True)
class _Given(Generic[I]):
    item: I


@dataclass(frozen=True, slots=True)
class _Rewound:
    rewind: Rewind


class _InputOver:
    pass


@dataclass(frozen=True, slots=True)
class _Heard:
    link: Link[Any, Any]
    reply: Any  # of the engine, or the error that ended the link


@dataclass(frozen=True, slots=True)
class _Made:
    link: Link[Any, Any]


@dataclass(frozen=True, slots=True)
class _NotMade:
    error: TalkingMachinesError


class _Stalled:
    pass


@dataclass(frozen=True, slots=True)
class _Crashed:
    error: BaseException


_Event = _Given[Any] | _Rewound | _InputOver | _Heard | _Made | _NotMade | _Stalled | _Crashed


class Attachment(Generic[I, A]):
    """The stage of a session that one kind of engine does.

    Args:
        wire: the messages.
        log: what the session said and drew.
        slack: seconds until a chunk is due at the client.
        seen: told of every replica that was attached to.
        first_chunk, first_place: where the stage begins (a resumed session not at 0).
    """

    def __init__(
        self,
        wire: Wire[I, A],
        log: SessionLog,
        *,
        slack: Callable[[int], float],
        patience: Patience,
        metrics: GatewayMetrics,
        spans: Spans,
        seen: Seen,
        first_chunk: int = 0,
        first_place: int = 0,
    ) -> None:
        self._wire = wire
        self._log = log
        self._slack = slack
        self._patience = patience
        self._metrics = metrics
        self._spans = spans
        self._attaching = Attaching(
            wire, going=self._going, patience=patience, metrics=metrics, seen=seen
        )
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending: dict[int, I] = {}  # given and not completely answered, in order
        self._next_chunk = first_chunk  # one past the newest that is completely answered
        self._expected = first_place
        self._turn = 0  # answers of lower turns are void
        self._newest_turn = 0  # of what was given
        self._version = 0
        self._input_over = False
        self._link: Link[Any, Any] | None = None
        self._successor: Link[Any, Any] | None = None
        self._successor_leaves: media_pb2.HandOver | None = None  # asked for before it was ours
        self._moving: HandOverReason | None = None  # why an attachment is being made, while it is
        self._fruitless = 0  # attachments lost in a row without an answer
        self._lost_at: float | None = None  # the first of them
        self._given_at: dict[int, float] = {}
        self._event_at = 0.0  # loop time of the last one
        self._watching: asyncio.TimerHandle | None = None  # for a replica that says nothing
        self.mean_seconds = 0.0  # per chunk, of late, waiting for the replica included
        self.hand_overs = 0
        self.rebuilds = 0

    async def open(self, *, running: bool) -> None:
        """Attach for the first time.

        Args:
            running: whether the session ran before, elsewhere: then it waits for room as well.

        Raises:
            TalkingMachinesError: as the replica refused; `NoCapacity` when none has room.
        """
        link = self._link = await self._attaching.first(running=running)
        link.listen(lambda reply: self._events.put_nowait(_Heard(link, reply)))
        self._metrics.attachments.labels(self._wire.engine).inc()

    async def flow(self, items: AsyncIterator[I | Rewind]) -> AsyncIterator[A | Rewind]:
        """Answer every item, in order, whatever happens to replicas meanwhile.

        Raises:
            TalkingMachinesError: no replica could be attached to in time.
        """
        self._spawn(self._feed(items))
        while not (self._input_over and not self._pending):
            for answer in self._react(await self._next_event()):
                yield answer

    def tell(self, request: Any) -> None:
        """Send a message that is not work (a key frame is wanted); lost if nobody is attached."""
        if self._link is not None:
            self._link.send(request)

    async def close(self) -> None:
        """Leave, and wait until the replicas have been told."""
        for task in self._tasks:
            task.cancel()
        if self._watching is not None:
            self._watching.cancel()
        while not self._events.empty():
            if isinstance(event := self._events.get_nowait(), _Made):
                event.link.cut()  # made while the session ended
        held = [link for link in (self._link, self._successor) if link is not None]
        self._metrics.attachments.labels(self._wire.engine).dec(len(held))
        self._link = self._successor = None
        await asyncio.gather(*(link.leave() for link in held))

    def _react(self, event: _Event) -> Iterator[A | Rewind]:
        match event:
            case _Given(item=item):
                self._pending[item.chunk] = item
                self._newest_turn = item.turn
                self._given_at[item.chunk] = asyncio.get_running_loop().time()
                self._send_pending()
            case _Rewound(rewind=rewind):
                self._rewind(rewind)
                yield rewind
            case _InputOver():
                self._input_over = True
            case _Heard(link=link, reply=TalkingMachinesError() as loss):
                self._lost(link, loss, HandOverReason.FAILURE)
            case _Heard(link=link, reply=reply) if link is self._link:
                yield from self._hear(link, reply)
            case _Heard(link=link, reply=reply) if link is self._successor:
                self._hear_early(link, reply)
            case _Heard():
                pass  # a replica that was left
            case _Made(link=link):
                self._made(link)
            case _NotMade(error=failure):
                self._not_made(failure)
            case _Stalled():
                self._stalled()
            case _Crashed(error=fault):
                raise fault

    def _hear(self, link: Link[Any, Any], reply: Any) -> Iterator[A]:
        answer = self._read(link, reply)
        if answer is None:
            return
        if isinstance(answer, media_pb2.HandOver):
            self._leave_soon(answer)
            return
        place = self._wire.place(answer)
        if answer.turn < self._turn or place < self._expected:
            return  # void, or known from another replica
        if place > self._expected or answer.chunk not in self._pending:
            gap = EngineFailure(f"got answer {place}, expected {self._expected}")
            self._lost(link, gap, HandOverReason.FAILURE)
            return
        self._expected += 1
        self._fruitless, self._lost_at = 0, None
        if self._expected == self._wire.first_place(answer.chunk + 1):
            del self._pending[answer.chunk]
            self._next_chunk = answer.chunk + 1
            self._time(answer.chunk)
        yield answer
        self._switch_at_boundary()

    def _hear_early(self, link: Link[Any, Any], reply: Any) -> None:
        """A replica that was attached to beforehand has no work yet; it can only ask us to go."""
        answer = self._read(link, reply)
        if isinstance(answer, media_pb2.HandOver):
            self._successor_leaves = answer

    def _read(self, link: Link[Any, Any], reply: Any) -> A | media_pb2.HandOver | None:
        """What a replica says; None, and the replica is lost, when it is malformed."""
        try:
            return self._wire.read(reply)
        except BadInput as error:
            self._lost(link, EngineFailure(f"a malformed answer: {error}"), HandOverReason.FAILURE)
            return None

    def _time(self, chunk: int) -> None:
        """Count how long a chunk took."""
        seconds = asyncio.get_running_loop().time() - self._given_at.pop(chunk)
        self._metrics.chunk_seconds.labels(self._wire.stage).observe(seconds)
        self._spans.stage(chunk, self._wire.stage, seconds)
        mean = self.mean_seconds or seconds
        self.mean_seconds = mean + _NEWEST * (seconds - mean)

    # ---- Sending ----

    def _send_pending(self) -> None:
        """Send what is pending and was not sent; nothing to a replica that is being left."""
        link = self._link
        if link is None or self._successor is not None:
            return
        for chunk, item in self._pending.items():
            if chunk == link.next_chunk:
                due = Due(self._slack(chunk), self._expected, self._spans.context(chunk))
                link.send(self._wire.item(item, due))
                link.next_chunk = chunk + 1

    def _rewind(self, rewind: Rewind) -> None:
        self._pending.clear()
        self._given_at.clear()
        self._turn = self._newest_turn = rewind.turn
        self._next_chunk, self._expected = self._wire.restart(rewind)
        self._version += 1
        if self._successor is not None:
            self._switch_at_boundary()
        elif self._link is not None:
            self._bring_up_to_date(self._link)

    def _bring_up_to_date(self, link: Link[Any, Any]) -> None:
        """Let `link` go on where this stage is, if its tail is an older or another one."""
        chunk = self._resumable
        if link.next_chunk != chunk or link.version != self._version:
            turn = next((item.turn for item in self._pending.values()), self._newest_turn)
            link.send(self._wire.rewind(turn, chunk))
            link.next_chunk, link.version = chunk, self._version

    @property
    def _resumable(self) -> int:
        """The chunk that an attachment made now goes on with.

        Below what is asked for only while a rewind is on its way here: it will correct that.
        """
        return min(next(iter(self._pending), self._next_chunk), self._log.next_undrawn)

    # ---- Changing the replica ----

    def _leave_soon(self, asked: media_pb2.HandOver) -> None:
        if self._moving is None and self._successor is None:
            reason = _REASONS.get(asked.reason, HandOverReason.UNHEALTHY)
            self._move(reason, duration.from_proto(asked.time_left))

    def _move(self, reason: HandOverReason, seconds: float) -> None:
        self._moving = reason
        self._spawn(self._make(seconds))

    def _made(self, link: Link[Any, Any]) -> None:
        link.listen(lambda reply: self._events.put_nowait(_Heard(link, reply)))
        self._metrics.attachments.labels(self._wire.engine).inc()
        self._successor = link
        self._switch_at_boundary()

    def _switch_at_boundary(self) -> None:
        """Change over when nothing is under way at the replica that is being left."""
        old, new = self._link, self._successor
        if new is None or (old is not None and self._under_way(old)):
            return
        assert self._moving is not None
        reason, self._moving = self._moving, None
        self._link, self._successor = new, None
        self.hand_overs += 1
        self._count(reason, Outcome.OK)
        if old is not None:
            self._metrics.attachments.labels(self._wire.engine).dec()
            self._spawn(old.leave())
        else:
            self.rebuilds += 1
            self._metrics.rebuilds.labels(self._wire.engine, reason).inc()
        self._bring_up_to_date(new)
        self._send_pending()
        leaves, self._successor_leaves = self._successor_leaves, None
        if leaves is not None:
            self._leave_soon(leaves)

    def _under_way(self, link: Link[Any, Any]) -> bool:
        return next(iter(self._pending), link.next_chunk) < link.next_chunk

    def _lost(
        self, link: Link[Any, Any], error: TalkingMachinesError, reason: HandOverReason
    ) -> None:
        if link not in (self._link, self._successor):
            return
        _log.warning("attachment lost", engine=self._wire.engine, error=error)
        link.cut()
        self._metrics.attachments.labels(self._wire.engine).dec()
        error = self._attaching.meaning(error)
        if isinstance(error, Refused):
            raise error
        now = asyncio.get_running_loop().time()
        self._lost_at = self._lost_at or now
        self._fruitless += 1
        if now - self._lost_at > self._patience.rebuild:
            raise error
        if link is self._successor:
            self._successor = self._successor_leaves = None
            self._move(self._moving or reason, self._patience.rebuild)
            return
        self._link = None
        if self._successor is not None:
            self._switch_at_boundary()
        elif self._moving is None:
            self._move(reason, self._patience.rebuild)

    def _not_made(self, error: TalkingMachinesError) -> None:
        reason, self._moving = self._moving, None
        assert reason is not None
        self._count(reason, Outcome.FAILED)
        if self._link is not None:
            return  # it ends by itself when its time is over; then we shall insist
        if reason in (HandOverReason.FAILURE, HandOverReason.STALL):
            raise error
        self._move(HandOverReason.FAILURE, self._patience.rebuild)

    def _count(self, reason: HandOverReason, outcome: Outcome) -> None:
        self._metrics.hand_overs.labels(self._wire.engine, reason, outcome).inc()

    # ---- Making attachments ----

    async def _make(self, seconds: float) -> None:
        """Attach within `seconds`; tells how it went."""
        try:
            link = await self._attaching.within(seconds, fruitless=self._fruitless)
            self._events.put_nowait(_Made(link))
        except Refused:
            raise
        except TalkingMachinesError as error:
            self._events.put_nowait(_NotMade(error))

    def _going(self) -> Going:
        chunk = self._resumable
        return Going(chunk, self._version, self._slack(chunk) if self._pending else None)

    # ---- Events ----

    async def _feed(self, items: AsyncIterator[I | Rewind]) -> None:
        async for item in items:
            self._events.put_nowait(_Rewound(item) if isinstance(item, Rewind) else _Given(item))
        self._events.put_nowait(_InputOver())

    async def _next_event(self) -> _Event:
        if self._watching is None and self._awaits_reply:
            self._watch(self._patience.stall)
        event = await self._events.get()
        self._event_at = asyncio.get_running_loop().time()
        return event

    @property
    def _awaits_reply(self) -> bool:
        return self._link is not None and self._under_way(self._link)

    def _watch(self, seconds: float) -> None:
        """Look in so many seconds whether anything has happened.

        One timer for as long as work is under way: a timeout around every event, of which every
        frame is one, would cost as much as the event.
        """
        self._watching = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._watching = None
        left = self._event_at + self._patience.stall - asyncio.get_running_loop().time()
        if not self._awaits_reply:
            return
        if left > 0:
            self._watch(left)
        else:
            self._events.put_nowait(_Stalled())

    def _stalled(self) -> None:
        """Nothing was heard for too long, though work is under way."""
        if self._link is not None and self._awaits_reply:
            stalled = TimedOut(f"a reply from {self._wire.engine}", limit=self._patience.stall)
            self._lost(self._link, stalled, HandOverReason.STALL)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.put_nowait(_Crashed(error))
