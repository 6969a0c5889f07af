"""Calls from the first message to the last: let in, queued, opened or resumed, held, ended.

On the path: server → **calls** → session. Whatever ends a call ends it alone, once, with one line
in the log, one count and one status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import time
from typing import TypeVar

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from services.gateway.admission import Admission, Waiting
from services.gateway.ahead import read_ahead
from services.gateway.auth import Caller
from services.gateway.avatars import Avatars, Character
from services.gateway.lease import Grant, Leases
from services.gateway.opening import Start, Wanted, Workshop, wanted
from services.gateway.outbox import NOT_READING, Event, Outbox
from services.gateway.parts import Parts
from services.gateway.persona import laid_over
from services.gateway.session import Session
from services.gateway.speech import Drive, SpeechSource
from services.gateway.statistics import Standing
from services.runtime.drain import Drain
from services.runtime.logs import about
from services.runtime.metrics import (
    GatewayMetrics,
    Outcome,
    Refusal,
    SessionEnd,
    SessionMode,
    SessionState,
)
from services.runtime.rpc import domain_error
from talkingmachines import duration
from talkingmachines.errors import (
    BadInput,
    Fenced,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    TalkingMachinesError,
    TimedOut,
    Unavailable,
)
from talkingmachines.media import spec_from_proto, spec_to_proto
from talkingmachines.v1 import avatar_pb2, storage_pb2

_log = structlog.stdlib.get_logger(__name__)

E = TypeVar("E", bound=BaseException | None)

_HEADER_SECONDS = 10.0  # to say what is wanted, once connected

Requests = AsyncIterator[avatar_pb2.TalkRequest]
# Makes the source of speech of one CONVERSE session.
Conversation = Callable[[Session, Grant], SpeechSource]


@dataclass(frozen=True, slots=True)
class Calls:
    """Every call of this gateway.

    Args:
        conversation: makes the source of speech for CONVERSE; None when no model is configured.
    """

    avatars: Avatars
    leases: Leases
    admission: Admission
    workshop: Workshop
    drain: Drain
    metrics: GatewayMetrics
    conversation: Conversation | None

    async def hold(self, caller: Caller, requests: Requests, outbox: Outbox) -> None:
        """Hold one call; what the client is to get goes to `outbox`.

        Raises:
            TalkingMachinesError: why it was refused or ended, other than well.
        """
        async with read_ahead(requests) as arrived:
            await self._hold(_Call(self, caller, arrived, outbox))

    async def _hold(self, call: _Call) -> None:
        try:
            await call.run()
        except BaseException as error:
            told = call.ended(error)
            if told is error:
                raise
            raise told from error
        call.ended(None)


class _Call:
    """One call."""

    def __init__(self, calls: Calls, caller: Caller, requests: Requests, outbox: Outbox) -> None:
        self._calls = calls
        self._caller = caller
        self._requests = requests
        self._outbox = outbox
        self._clock = asyncio.get_running_loop().time
        self._opened_at = self._clock()
        self._running = False
        self._standing = Standing(calls.metrics, SessionState.OPENING)
        self._ticket = calls.admission.ticket(
            caller.name, most=caller.limits.sessions, tell=self._queued
        )

    async def run(self) -> None:
        want = await self._header()
        self._outbox.wants_frames, self._outbox.wants_sound = want.frames, want.sound
        with self._standing:
            if want.resume_token:
                await self._resume(want)
            else:
                await self._open(want)

    def ended(self, error: E) -> E | TalkingMachinesError:
        """Count and log the end of the call; returns what its client is told."""
        told = error if error is None else (domain_error(error) or error)
        if self._running:
            reason = _end(told, draining=self._calls.drain.started.is_set())
            self._calls.metrics.session_ends.labels(reason).inc()
            self._calls.metrics.session_seconds.observe(self._clock() - self._opened_at)
            _log.info("session ended", reason=reason, error=told)
        elif isinstance(told, TalkingMachinesError):
            self._calls.metrics.refusals.labels(refusal(told)).inc()
        return told

    async def _header(self) -> Wanted:
        try:
            async with asyncio.timeout(_HEADER_SECONDS):
                first = await anext(self._requests, None)
        except TimeoutError:
            raise TimedOut("waiting for the first message", limit=_HEADER_SECONDS) from None
        if first is None or not first.HasField("open"):
            got = "nothing" if first is None else first.WhichOneof("message") or "nothing"
            raise BadInput("message", got=got, expected="open, as the first message")
        return wanted(first.open, converses=self._calls.conversation is not None)

    async def _open(self, want: Wanted) -> None:
        """A new session: a character, a place, a lease, engines."""
        character = await self._calls.avatars.character(self._caller.tenant, want.avatar_id)
        deadline = self._opened_at + want.patience
        record = await self._record(want, character)
        async with AsyncExitStack() as held:
            held.push_async_callback(self._ticket.give_back)
            while True:
                await self._ticket.wait(deadline)
                self._standing.be(SessionState.OPENING)
                grant = await self._calls.leases.open(record)
                try:
                    await self._talk(want, grant, character, resumed=False)
                    return
                except (NoCapacity, TimedOut):  # the engines are full, whatever our count says
                    if self._running:
                        raise
                    await self._calls.leases.end(grant)
                    await self._ticket.pause(deadline)

    async def _resume(self, want: Wanted) -> None:
        """A session that another connection began, here or at another gateway."""
        outcome = Outcome.FAILED
        try:
            grant = await self._calls.leases.resume(want.resume_token, tenant=self._caller.tenant)
            record = grant.record
            character = await self._calls.avatars.character(self._caller.tenant, record.avatar_id)
            outcome = Outcome.OK
        finally:
            self._calls.metrics.resumes.labels(outcome).inc()
        async with AsyncExitStack() as held:
            held.push_async_callback(self._ticket.give_back)
            await self._ticket.take()
            await self._talk(want, grant, character, resumed=True)

    async def _talk(
        self, want: Wanted, grant: Grant, character: Character, *, resumed: bool
    ) -> None:
        """Attach, say that the session runs, and hold it."""
        loaded = await self._calls.workshop.engines.loaded()
        spec = spec_from_proto(grant.record.spec, at="spec")
        if spec != loaded.spec:
            raise NotFound("session with this checkpoint", grant.session_id)
        start = Start.of(grant, spec, want.playback)
        parts, lease = self._calls.workshop.parts(
            grant, character, loaded, start, self._outbox, want.video, self._opened_at
        )
        with about(session=grant.session_id):
            async with AsyncExitStack() as attached:
                attached.callback(parts.spans.cut_off)
                for stage in (parts.score, parts.vae):
                    attached.push_async_callback(stage.close)
                    await stage.open(running=resumed)
                self._running = True
                self._calls.metrics.sessions_opened.labels(_mode(grant.record)).inc()
                session = self._session(parts, grant, start)
                self._outbox.need_key_frame = session.ask_key_frame
                self._outbox.tell(Event(ready=self._ready(parts, grant, start, resumed)))
                source = self._source(session, grant)
                keeping = (lease.keep(), self._ticket.keep(), self._going_away())
                try:
                    await session.run(self._requests, source, *keeping)
                except BaseException as error:
                    if final(domain_error(error)):
                        await self._calls.leases.end(grant)
                    else:
                        await lease.leave()
                    raise
                await self._calls.leases.end(grant)

    def _session(self, parts: Parts, grant: Grant, start: Start) -> Session:
        return Session(
            parts,
            self._caller.limits.session,
            self._standing,
            backlog=start.backlog,
            new_from=start.new_from,
            age=time() - grant.record.open_time.seconds,
        )

    def _source(self, session: Session, grant: Grant) -> SpeechSource:
        if grant.record.mode == avatar_pb2.TALK_MODE_DRIVE:
            return Drive(session)
        assert self._calls.conversation is not None
        return self._calls.conversation(session, grant)

    async def _record(self, want: Wanted, character: Character) -> storage_pb2.SessionRecord:
        loaded = await self._calls.workshop.engines.loaded()
        now = Timestamp()
        now.GetCurrentTime()
        return storage_pb2.SessionRecord(
            tenant=self._caller.tenant,
            caller=self._caller.name,
            avatar_id=want.avatar_id,
            mode=want.mode,
            seed=want.seed,
            spec=spec_to_proto(loaded.spec),
            open_time=now,
            persona=laid_over(character.avatar.persona, want.persona),
        )

    def _ready(self, parts: Parts, grant: Grant, start: Start, resumed: bool) -> avatar_pb2.Ready:
        limits = self._caller.limits.session
        return avatar_pb2.Ready(
            session_id=grant.session_id,
            spec=grant.record.spec,
            resume_token=grant.token,
            resume_window=duration.to_proto(self._calls.leases.window),
            resumed=resumed,
            seed=grant.record.seed,
            next_frame=start.position.frame,
            next_sample=start.position.sample,
            turn=start.turn,
            max_buffered_speech=duration.to_proto(limits.buffered_seconds),
            video=parts.vae_wire.video.to_proto(),
            speech=[
                avatar_pb2.SpeechPosition(speaker=position.speaker, sample=position.sample)
                for position in parts.chunker.positions
            ],
        )

    async def _going_away(self) -> None:
        """Tell the client when this gateway will stop, so that it goes on elsewhere."""
        await self._calls.drain.started.wait()
        left = duration.to_proto(self._calls.drain.remaining)
        self._outbox.tell(Event(going_away=avatar_pb2.GoingAway(time_left=left)))

    def _queued(self, place: Waiting) -> None:
        self._calls.metrics.queue_sessions.set(place.depth)
        self._standing.be(SessionState.QUEUED)
        wait = None if place.wait is None else duration.to_proto(place.wait)
        queued = avatar_pb2.Queued(position=place.position, depth=place.depth, expected_wait=wait)
        self._outbox.tell(Event(queued=queued))


def refusal(error: TalkingMachinesError) -> Refusal:
    """How a call that never ran, or was not answered, is counted."""
    match error:
        case NoCapacity():
            return Refusal.CAPACITY
        case QuotaExceeded():
            return Refusal.QUOTA
        case Unavailable():
            return Refusal.STORE
        case _:
            return Refusal.BAD_INPUT


def _mode(record: storage_pb2.SessionRecord) -> SessionMode:
    drives = record.mode == avatar_pb2.TALK_MODE_DRIVE
    return SessionMode.DRIVE if drives else SessionMode.CONVERSE


def final(error: TalkingMachinesError | None) -> bool:
    """Whether the session cannot be resumed after `error`: its client misused or outlived it.

    When the client, its network, the engines or this gateway went away, it can; when another
    connection has the session, it is not ours to end.
    """
    if isinstance(error, TimedOut):
        return error.what != NOT_READING
    return isinstance(error, BadInput | QuotaExceeded)


def _end(told: BaseException | None, *, draining: bool) -> SessionEnd:
    match told:
        case None:
            return SessionEnd.CLIENT
        case asyncio.CancelledError():
            return SessionEnd.DRAIN if draining else SessionEnd.VANISHED
        case BadInput():
            return SessionEnd.BAD_INPUT
        case Fenced():
            return SessionEnd.MOVED
        case QuotaExceeded():
            return SessionEnd.LIMIT
        case TimedOut(what=what):
            return SessionEnd.SLOW if what == NOT_READING else SessionEnd.IDLE
        case _:
            return SessionEnd.FAILURE
