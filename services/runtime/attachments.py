"""Attachments to a replica: how many, how long, and how they end; the same for score and VAE.

On the path: wire → **attachments** → servicer → engine. One stream is one attachment: one session's
cache here. Attachments are short on purpose: each has a maximum age, after which the replica asks
the gateway to go on elsewhere, as it does when it drains, is overloaded or finds itself unhealthy.
The gateway makes the next attachment before it leaves this one, so a replica takes a few more than
it has slots.

    async with attachments.attach(requests) as attachment:
        header = await attachment.header()
        ...                                     # build the session; then say that it stands
        attachment.establish()
        async for event in attachment.events(owing=...):
            ...                                 # requests, results, orders to pass on: one queue

Requests come from the wire, results and orders from elsewhere in the process; all meet in one
queue, so nothing races. Requests are read no further ahead than `Terms.waiting`: who floods us is
held back by the wire.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import structlog
from pydantic import Field, PositiveFloat

from services.runtime.drain import Drain
from services.runtime.endpoint import Check
from services.runtime.metrics import Engine, EngineMetrics, Refusal
from services.runtime.settings import Nested
from talkingmachines import duration
from talkingmachines.errors import BadInput, NoCapacity, TalkingMachinesError, TimedOut, Unavailable
from talkingmachines.v1 import media_pb2

_log = structlog.stdlib.get_logger(__name__)

Q = TypeVar("Q")  # what the wire brings
R = TypeVar("R")  # what the engine brings

_RETRY_SECONDS = 1.0  # until a slot here may be free; another replica may have one now
_WATCH_SECONDS = 0.5
_FAREWELL_SECONDS = 1.0  # for a servicer to end by itself, before its task is cancelled


class Terms(Nested):
    """What attachments to a replica may count on."""

    headroom: Annotated[int, Field(ge=0)] = 1  # attachments beyond the slots, while others leave
    max_age_seconds: PositiveFloat = 60.0  # until the gateway is asked to attach elsewhere
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.2  # of the age, so that they do not all move
    time_left_seconds: PositiveFloat = 10.0  # to leave, once asked
    header_seconds: PositiveFloat = 10.0  # for the first message
    idle_seconds: PositiveFloat = 60.0  # between messages
    waiting: Annotated[int, Field(ge=1)] = 16  # messages of one attachment that are read ahead
    overload_seconds: PositiveFloat = 15.0  # beyond the slots for so long: somebody must leave

    @property
    def longest_seconds(self) -> float:
        """After which no attachment is left, whatever the gateway does."""
        return self.max_age_seconds * (1 + self.jitter) + self.time_left_seconds + _FAREWELL_SECONDS


@dataclass(frozen=True, slots=True)
class _Request(Generic[Q]):
    message: Q


@dataclass(frozen=True, slots=True)
class _Result(Generic[R]):
    result: R


class _HalfClosed:
    pass


class Attachments(Generic[Q, R]):
    """All attachments to this replica; watches over them while entered.

    Args:
        slots: sessions that the replica can serve, >= 1, as measured now.
        unhealthy: what is wrong with the replica; then nobody is let in and all are asked to leave.
        drain: the process's; when it starts, all are asked to leave.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        engine: Engine,
        slots: Callable[[], int],
        unhealthy: Check,
        drain: Drain,
        metrics: EngineMetrics,
    ) -> None:
        self.terms = terms
        self._engine = engine
        self._slots = slots
        self._unhealthy = unhealthy
        self._drain = drain
        self._metrics = metrics
        self._running: dict[Attachment[Q, R], None] = {}  # in order of arrival
        self._crowded_since: float | None = None
        self._tell()

    async def __aenter__(self) -> Attachments[Q, R]:
        self._watching = [
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._watch_drain()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for attachment in list(self._running):
            attachment.fail(Unavailable("this replica ends", retry_after=0.0))

    def capacity(self) -> media_pb2.Capacity:
        """How full the replica is."""
        return media_pb2.Capacity(sessions=len(self._running), slots=self._slots())

    @asynccontextmanager
    async def attach(self, requests: AsyncIterator[Q]) -> AsyncGenerator[Attachment[Q, R], None]:
        """One more attachment, until left. Must be entered in the task that serves the stream.

        Raises:
            NoCapacity: every slot and the headroom are taken.
            Unavailable: the replica is not well.
        """
        self._admit()
        attachment: Attachment[Q, R] = Attachment(self.terms, requests)
        self._running[attachment] = None
        self._tell()
        try:
            yield attachment
        finally:
            del self._running[attachment]
            self._tell()
            await attachment.close()

    def begin(self) -> None:
        """Let a session begin that ran nowhere before: on a slot, or not at all.

        The headroom is for those that move here. Were it given to newcomers whenever callers wait,
        a full fleet would have no room left for moving, and sessions that must move would end.

        Raises:
            NoCapacity: every slot is taken.
        """
        if len(self._running) > self._slots():
            self._metrics.refusals.labels(self._engine, Refusal.CAPACITY).inc()
            raise NoCapacity("a new session", retry_after=_RETRY_SECONDS)

    def ask_to_leave(self, reason: media_pb2.HandOverReason.ValueType) -> None:
        """Ask every gateway here to go on elsewhere."""
        time_left = min(self.terms.time_left_seconds, self._drain.remaining)
        for attachment in list(self._running):
            attachment.ask_to_leave(reason, time_left)

    def _admit(self) -> None:
        if (wrong := self._unhealthy()) is not None:
            self._metrics.refusals.labels(self._engine, Refusal.DRAINING).inc()
            raise Unavailable(f"this replica is not well: {wrong}", retry_after=_RETRY_SECONDS)
        if len(self._running) >= self._slots() + self.terms.headroom:
            self._metrics.refusals.labels(self._engine, Refusal.CAPACITY).inc()
            raise NoCapacity("another attachment", retry_after=_RETRY_SECONDS)

    def _tell(self) -> None:
        self._metrics.slots.labels(self._engine).set(self._slots())
        self._metrics.slots_used.labels(self._engine).set(len(self._running))

    async def _watch_drain(self) -> None:
        await self._drain.started.wait()
        self.ask_to_leave(media_pb2.HAND_OVER_REASON_DRAINING)

    async def _watch(self) -> None:
        was_well = True
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            well = (wrong := self._unhealthy()) is None
            if was_well and not well:
                _log.error("replica is unhealthy", why=wrong)
                self.ask_to_leave(media_pb2.HAND_OVER_REASON_UNHEALTHY)
            was_well = well
            self._relieve()
            self._tell()

    def _relieve(self) -> None:
        """Ask the newest to leave when there have been too many for longer than a move takes."""
        now = asyncio.get_running_loop().time()
        staying = [attachment for attachment in self._running if not attachment.leaving]
        if len(staying) <= self._slots():
            self._crowded_since = None
            return
        self._crowded_since = self._crowded_since or now
        if now - self._crowded_since > self.terms.overload_seconds:
            self._crowded_since = None
            _log.warning("replica is overloaded", sessions=len(staying), slots=self._slots())
            staying[-1].ask_to_leave(
                media_pb2.HAND_OVER_REASON_OVERLOADED, self.terms.time_left_seconds
            )


class Attachment(Generic[Q, R]):
    """One attachment: what comes to it, in the order in which it comes."""

    def __init__(self, terms: Terms, requests: AsyncIterator[Q]) -> None:
        self.max_age = terms.max_age_seconds * random.uniform(1 - terms.jitter, 1 + terms.jitter)
        self._terms = terms
        self._requests = requests
        self._events: asyncio.Queue[
            _Request[Q] | _Result[R] | media_pb2.HandOver | _HalfClosed | TalkingMachinesError
        ] = asyncio.Queue()
        self._room = asyncio.Semaphore(terms.waiting)
        self._half_closed = False
        self._established = False
        self._ends_at: float | None = None  # loop time
        self._end: asyncio.TimerHandle | None = None
        self._growing_old: asyncio.TimerHandle | None = None
        self._servicer = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._reading = asyncio.create_task(self._read())

    @property
    def leaving(self) -> bool:
        """Whether it was asked to leave."""
        return self._ends_at is not None

    async def header(self) -> Q:
        """The first message.

        Raises:
            BadInput: there is none.
            TimedOut: it does not come.
        """
        event = await self._next(lambda: False)
        if event is None:
            raise BadInput("message", got="nothing", expected="attach")
        # Neither results nor orders come before it stands.
        return event  # type: ignore[return-value]

    def establish(self) -> None:
        """It stands, and begins to age. Call it just before saying so."""
        self._established = True
        self._growing_old = self._loop.call_later(
            self.max_age,
            self.ask_to_leave,
            media_pb2.HAND_OVER_REASON_AGE,
            self._terms.time_left_seconds,
        )

    async def events(
        self, *, owing: Callable[[], bool]
    ) -> AsyncGenerator[Q | R | media_pb2.HandOver, None]:
        """Requests, results, and hand-overs to pass on, as they come.

        Ends when the gateway has half-closed and nothing is owed to it any more.

        Args:
            owing: whether results are still to come; asked after each event.

        Raises:
            TalkingMachinesError: it failed, or its time is over.
        """
        while (event := await self._next(owing)) is not None:
            yield event

    def deliver(self, result: R) -> None:
        """Bring a result to whoever serves this attachment."""
        self._events.put_nowait(_Result(result))

    def fail(self, error: TalkingMachinesError) -> None:
        """End it, after what has come before."""
        self._events.put_nowait(error)
        # Whoever never reads keeps the servicer from seeing that.
        if self._servicer is not None:
            self._end_at(self._loop.time() + _FAREWELL_SECONDS, self._servicer.cancel)

    def ask_to_leave(self, reason: media_pb2.HandOverReason.ValueType, time_left: float) -> None:
        """Ask the gateway to go on elsewhere within `time_left` seconds, then end.

        Asked again, it only hears of a time that has become shorter.
        """
        gone = Unavailable("its time here is over", retry_after=0.0)
        if not self._established:
            self.fail(gone)
            return
        ends_at = self._loop.time() + time_left
        if self._ends_at is not None and ends_at >= self._ends_at:
            return
        self._ends_at = ends_at
        order = media_pb2.HandOver(reason=reason, time_left=duration.to_proto(time_left))
        self._events.put_nowait(order)
        self._end_at(ends_at, self.fail, gone)

    async def close(self) -> None:
        """Stop reading."""
        self._stop_timers()
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading

    async def _next(self, owing: Callable[[], bool]) -> Q | R | media_pb2.HandOver | None:
        while not (self._half_closed and not owing()):
            match event := await self._events.get():
                case _Request(message=message):
                    self._room.release()
                    return message
                case _Result(result=result):
                    return result
                case media_pb2.HandOver():
                    return event
                case _HalfClosed():
                    self._half_closed = True
                case _:
                    self._stop_timers()  # the servicer has heard, and may take its time to end
                    raise event
        self._stop_timers()
        return None

    def _stop_timers(self) -> None:
        for timer in (self._end, self._growing_old):
            if timer is not None:
                timer.cancel()

    def _end_at(self, when: float, end: Callable[..., object], *args: Any) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = self._loop.call_at(when, end, *args)

    async def _read(self) -> None:
        limit, what = self._terms.header_seconds, "the first message"
        try:
            while True:
                await self._room.acquire()
                async with asyncio.timeout(limit):
                    message = await anext(self._requests)
                self._events.put_nowait(_Request(message))
                limit, what = self._terms.idle_seconds, "the next message"
        except StopAsyncIteration:
            self._events.put_nowait(_HalfClosed())
        except TimeoutError:
            self.fail(TimedOut(what, limit=limit))
        except TalkingMachinesError as error:  # a message that does not parse
            self.fail(error)
        except Exception as error:  # noqa: BLE001  whatever a wire may raise ends this one alone
            _log.info("requests broke off", error=error)
            self.fail(Unavailable("the caller's requests broke off", retry_after=0.0))
