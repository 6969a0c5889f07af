"""The one loop that drives the engine.

Between the servicer and `engine.py`. The engine lives on the device thread; here is what the event
loop knows of it. A round takes in what was asked for, draws the most urgent chunks, hands their
latents to the loop at once and then lets them become context; while anything waits there is a next
round. What fails in it ends the sessions it belongs to, and no others.

    servicer ─► Session.ask ─► (round on the device thread) ─► Session.deliver ─► attachment
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol

import structlog

from services.runtime.device import DeviceThread
from services.score.contract import Avatar, Chunk, Drawn, Ended, LogTail
from services.score.engine import Engine, EngineStats
from talkingmachines.errors import BadInput, TalkingMachinesError

_log = structlog.stdlib.get_logger(__name__)

_AT_THE_ENGINE = 2  # chunks of a session: one to draw, one to follow
_UNANSWERED = 32  # chunks of a session; a gateway that keeps to its lead has a handful


class Receiver(Protocol):
    """Where a session's results go."""

    def deliver(self, result: Answer, /) -> None: ...
    def fail(self, error: TalkingMachinesError, /) -> None: ...


class Witness(Protocol):
    """Who counts what happens here; called on the loop."""

    def opened(self, seconds: float) -> None: ...
    def answered(self, answer: Answer) -> None: ...
    def ended(self, ended: Ended) -> None: ...
    def settled(self, round_: Round, settled: float) -> None: ...
    def holds(self, stats: EngineStats) -> None: ...


@dataclass(slots=True, eq=False)
class Asked:
    """A chunk on its way to the device."""

    session: str
    chunk: Chunk
    at: float  # monotonic seconds
    trace: str  # that it belongs to
    void: bool = False  # forgotten by a rewind, or its session has left


@dataclass(frozen=True, slots=True)
class Answer:
    """A chunk that was drawn for whoever asked."""

    asked: Asked
    drawn: Drawn
    began: float  # monotonic seconds: of its round, and of its latents in host memory
    done: float


@dataclass(frozen=True, slots=True)
class Round:
    """What the device did, in monotonic seconds."""

    outcomes: list[Drawn | Ended]
    began: float
    drawn: float  # latents are in host memory

    @property
    def sessions(self) -> int:
        """Drawn together."""
        return sum(isinstance(one, Drawn) for one in self.outcomes)


@dataclass(frozen=True, slots=True)
class _Rest:
    """The end of a round: what was drawn has become context."""

    round: Round
    ended: list[Ended]
    settled: float
    stats: EngineStats


class Session:
    """One attached session, as the loop sees it."""

    def __init__(self, driver: Driver, name: str, receiver: Receiver, *, faces: int) -> None:
        self.name, self.faces = name, faces
        self.turn = 0
        self.next_chunk = 0
        self._driver, self._receiver = driver, receiver
        self._backlog: deque[Asked] = deque()
        self._at_engine: deque[Asked] = deque()

    @property
    def unanswered(self) -> int:
        """Chunks asked for and not answered."""
        return len(self._backlog) + len(self._at_engine)

    def ask(self, chunk: Chunk, *, trace: str = "") -> None:
        """Ask for the next chunk.

        Raises:
            BadInput: it is not the next one, of an old turn, or too many are unanswered.
        """
        if chunk.turn < self.turn:
            raise BadInput("chunk.turn", got=chunk.turn, expected=f"at least {self.turn}")
        if chunk.chunk != self.next_chunk:
            raise BadInput("chunk.chunk", got=chunk.chunk, expected=str(self.next_chunk))
        if self.unanswered == _UNANSWERED:
            raise BadInput("chunk", got="one more", expected=f"at most {_UNANSWERED} unanswered")
        self.turn, self.next_chunk = chunk.turn, chunk.chunk + 1
        self._backlog.append(Asked(self.name, chunk, monotonic(), trace))
        self._forward()

    async def rewind(self, turn: int, tail: LogTail) -> None:
        """Forget what was asked for, and go on from `tail`.

        Raises:
            BadInput: the turn is an old one, or the tail does not fit.
            EngineFailure: its passes failed; the session has ended.
        """
        if turn < self.turn:
            raise BadInput("rewind.turn", got=turn, expected=f"at least {self.turn}")
        self.forget()
        await self._driver.rewind(self.name, turn=turn, tail=tail)
        self.turn, self.next_chunk = turn, tail.next_chunk

    def forget(self) -> None:
        """Nobody waits any more for what was asked for."""
        for asked in self._at_engine:
            asked.void = True
        self._backlog.clear()
        self._at_engine.clear()

    def answer(self, drawn: Drawn, round_: Round) -> Answer | None:
        """Pass on the oldest chunk that the engine was given; None for one that was forgotten."""
        if not self._at_engine or self._at_engine[0].chunk.chunk != drawn.chunk:
            return None
        answer = Answer(self._at_engine.popleft(), drawn, round_.began, round_.drawn)
        self._receiver.deliver(answer)
        self._forward()
        return answer

    def fail(self, error: TalkingMachinesError) -> None:
        self.forget()
        self._receiver.fail(error)

    def _forward(self) -> None:
        while self._backlog and len(self._at_engine) < _AT_THE_ENGINE:
            asked = self._backlog.popleft()
            self._at_engine.append(asked)
            self._driver.take(asked)


class Driver:
    """Drives an engine, from entering to leaving.

    Args:
        device: the thread that the engine lives on.
        hang_seconds: after which a step without a sign is taken for hung.
        probe_seconds: how often an idle engine is asked whether all its ranks are there.
    """

    def __init__(
        self,
        engine: Engine,
        device: DeviceThread,
        *,
        witness: Witness,
        hang_seconds: float,
        probe_seconds: float,
    ) -> None:
        self._engine, self._device, self._witness = engine, device, witness
        self._hang_seconds, self._probe_seconds = hang_seconds, probe_seconds
        self._sessions: dict[str, Session] = {}
        self._named = 0
        self._inbox: deque[Asked] = deque()  # filled on the loop, emptied on the device thread
        self._work = asyncio.Event()
        self._fault: str | None = None
        self.stats = engine.stats()

    async def __aenter__(self) -> Driver:
        self._driving = asyncio.create_task(self._drive())
        self._driving.add_done_callback(self._stopped)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._driving.cancel()
        await asyncio.wait([self._driving])  # what it raised has been told

    def unhealthy(self) -> str | None:
        """Why this replica cannot be relied on, or None."""
        hung = self._device.hung(after_seconds=self._hang_seconds)
        return self._fault or hung or self._engine.health(limit=self._hang_seconds)

    @asynccontextmanager
    async def session(
        self, avatar: Avatar, *, seed: int, tail: LogTail, receiver: Receiver
    ) -> AsyncGenerator[Session, None]:
        """A session of the engine's, open until left.

        Raises:
            BadInput: avatar or tail do not fit.
            NoCapacity: running sessions would pay for it, or memory is short.
            EngineFailure: its first passes failed.
        """
        self._named += 1
        session = Session(self, f"attachment-{self._named}", receiver, faces=len(avatar.faces))
        session.next_chunk = tail.next_chunk
        began = monotonic()
        # Known from here on: what fails on the device thread may concern it before it has begun.
        self._sessions[session.name] = session
        try:
            self._know(await self._device.run(self._open, session.name, avatar, seed, tail))
            self._witness.opened(monotonic() - began)
            yield session
        finally:
            session.forget()
            del self._sessions[session.name]
            await asyncio.shield(self._close(session.name))

    async def rewind(self, name: str, *, turn: int, tail: LogTail) -> None:
        await self._device.run(lambda: self._engine.rewind(name, turn=turn, tail=tail))

    def take(self, asked: Asked) -> None:
        """Give a chunk to the engine with the next round."""
        self._inbox.append(asked)
        self._work.set()

    # ---- On the loop ----

    async def _drive(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._probe_seconds):
                    await self._work.wait()
            except TimeoutError:
                for ended in await self._device.run(self._engine.probe):
                    self._end(ended)
                continue
            self._work.clear()
            async with aclosing(self._device.stream(self._round)) as parts:
                async for part in parts:
                    self._heed(part)

    def _heed(self, part: Round | _Rest) -> None:
        if isinstance(part, Round):
            for outcome in part.outcomes:
                self._tell(outcome, part)
            return
        for ended in part.ended:
            self._end(ended)
        self._know(part.stats)
        self._witness.settled(part.round, part.settled)
        if part.stats.queued:
            self._work.set()

    def _tell(self, outcome: Drawn | Ended, round_: Round) -> None:
        if isinstance(outcome, Ended):
            self._end(outcome)
        elif (session := self._sessions.get(outcome.session)) is not None:
            answer = session.answer(outcome, round_)
            if answer is not None:
                self._witness.answered(answer)

    def _end(self, ended: Ended) -> None:
        self._witness.ended(ended)
        if ended.session in self._sessions:  # else it has left
            self._sessions[ended.session].fail(ended.error)

    def _stopped(self, driving: asyncio.Task[None]) -> None:
        """Without its loop a replica draws nothing: let its health say so."""
        if not driving.cancelled():
            self._fault = "the loop that drives the engine has ended"
            _log.error(self._fault, exc_info=driving.exception())

    async def _close(self, name: str) -> None:
        with suppress(TalkingMachinesError):  # the thread is closed, or hangs: nothing is left
            self._know(await self._device.run(self._shut, name))

    def _know(self, stats: EngineStats) -> None:
        self.stats = stats
        self._witness.holds(stats)

    # ---- On the device thread ----

    def _open(self, name: str, avatar: Avatar, seed: int, tail: LogTail) -> EngineStats:
        self._engine.open(name, avatar, seed=seed, tail=tail)
        return self._engine.stats()

    def _shut(self, name: str) -> EngineStats:
        self._engine.close(name)
        return self._engine.stats()

    def _round(self) -> Iterator[Round | _Rest]:
        refused = self._take_in()
        began = monotonic()
        outcomes = self._engine.step()
        drew = Round([*refused, *outcomes], began, monotonic())
        yield drew
        ended = self._engine.settle()
        yield _Rest(drew, ended, monotonic(), self._engine.stats())

    def _take_in(self) -> list[Ended]:
        """Let the engine have what was asked for; sessions it refuses it from end."""
        refused: list[Ended] = []
        while self._inbox:
            asked = self._inbox.popleft()
            if asked.void:
                continue
            slack = asked.at + asked.chunk.slack - monotonic()
            try:
                self._engine.submit(asked.session, replace(asked.chunk, slack=slack))
            except TalkingMachinesError as error:
                self._engine.close(asked.session)
                refused.append(Ended(asked.session, error))
        return refused
