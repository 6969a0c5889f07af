"""Sessions over one model: who is drawn next, what goes in, what comes out, who may come in.

Above `worker.py`, below the servicer. Without threads: one caller opens, submits and steps, and
between `step` and `settle` hands on the latents, so that they leave before the context pass runs.

    open ─► submit ─► step ─► (latents leave) ─► settle ─► submit ─► ... ─► close

A session here is a cache over its log. It can be opened anywhere with avatar, seed and the log's
tail, and rewound in the same way. What fails, fails one session, unless a rank is lost.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from services.score import checks, commands
from services.score.avatars import AvatarShelf, ShelfStats
from services.score.commands import Hands
from services.score.config import DitConfig
from services.score.contract import (
    Avatar,
    Chunk,
    Drawn,
    Ended,
    LogTail,
    Mode,
    NotANumber,
    OutOfMemory,
    RankLost,
    Speech,
    TailSize,
)
from services.score.frontend.features import FrontEnd
from services.score.hearing import Ear
from services.score.schedule import Costs, Ready, admits, load, pick
from services.score.worker import Heard, Part
from talkingmachines.errors import (
    BadInput,
    EngineFailure,
    NoCapacity,
    NotFound,
    TalkingMachinesError,
)

_log = logging.getLogger(__name__)

_QUEUED = 2  # chunks that a session may have waiting: one to draw, one to follow
_RETRY_AFTER = 5.0  # seconds; sessions last minutes, but one may just be ending


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine is allowed, apart from what it can do.

    Raises:
        BadInput: a limit that lets nobody in, or more rows in a batch than sessions.
    """

    sessions: int = 64
    headroom: int = 0  # more, while others are about to leave and draw no longer
    rows: int = 1  # most chunks in one batch; more only where that was measured to gain
    faces: int = 2  # most speakers of one avatar; steps are prepared for each number of them
    avatar_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        for limit in fields(self):
            least = 0 if limit.name == "headroom" else 1
            checks.check_whole(f"limits.{limit.name}", getattr(self, limit.name), least=least)
        if self.rows > self.sessions:
            raise BadInput(
                "limits.rows", got=self.rows, expected=f"at most {self.sessions} sessions"
            )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for metrics."""

    sessions: int
    slots: int  # sessions that would all meet their deadlines, as measured; at least 1
    queued: int  # chunks waiting
    drawn: int  # chunks, ever
    late: int  # of these, after their deadline
    failed: int  # sessions that ended with an error, ever
    load: float  # part of a chunk's period that the open sessions need
    session_bytes: int  # context of the open sessions, on this rank
    chunk_seconds: dict[int, float]  # by rows in a batch, running mean
    avatars: ShelfStats


@dataclass(slots=True)
class _Session:
    digest: str
    faces: int  # that speech can move
    turn: int
    ears: list[Ear] = field(default_factory=list)
    next_chunk: int = 0  # that may be submitted
    finished: int = 0  # chunks in its context
    nbytes: int = 0
    waiting: deque[tuple[Chunk, float]] = field(default_factory=deque)  # with deadlines


class Engine:
    """All sessions of one replica."""

    def __init__(
        self,
        config: DitConfig,
        hands: Hands,
        front_end: FrontEnd | None,
        *,
        limits: Limits,
        queues: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`queues`: the device works through orders by itself. It then gets the context pass right
        behind the last step, and latents leave while it computes; else the pass waits for `settle`.
        """
        self._queues = queues
        self.config, self.spec = config, config.spec
        self._hands, self._front_end, self._limits, self._clock = hands, front_end, limits, clock
        self._shelf = AvatarShelf(
            budget=limits.avatar_bytes,
            add=lambda avatar: hands.perform(commands.AddAvatar(avatar)),
            drop=lambda digest: hands.perform(commands.DropAvatar(digest)),
        )
        self._sessions: dict[str, _Session] = {}
        self._costs = Costs()
        self._unsettled: _Batch | None = None
        self._untold: list[Ended] = []  # sessions that ended while another was served
        self._busy_since: float | None = None
        self._broken: RankLost | None = None
        self._drawn = self._late = self._failed = 0

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def tail(self) -> TailSize:
        """How much of its log a session must show to be opened or rewound."""
        return checks.tail_size(self.config)

    def open(
        self, session: str, avatar: Avatar, *, seed: int, tail: LogTail, turn: int = 0
    ) -> None:
        """Take in a session, new or from elsewhere; its next chunk is `tail.next_chunk`.

        Raises:
            BadInput: avatar, seed or tail do not fit the model, the name is taken, or the avatar is
                larger than all avatars together may be.
            NoCapacity: running sessions would pay for it, or memory is short.
            EngineFailure: its first passes failed.
        """
        self._usable()
        if session in self._sessions:
            raise BadInput("attach.session", got=session, expected="a name that is not open")
        checks.check_whole("attach.seed", seed, below=2**64)
        checks.check_whole("attach.turn", turn)
        checks.check_avatar(avatar, self.config)
        if len(avatar.faces) > self._limits.faces:
            most = self._limits.faces
            raise BadInput("avatar.faces", got=len(avatar.faces), expected=f"at most {most}")
        held = _Session(avatar.digest, len(avatar.faces) if self.config.audio else 0, turn)
        checks.check_tail(tail, held.faces, self.config)
        self._admit()
        self._untold += self.settle()
        with self._working():
            self._take(avatar)
            self._sessions[session] = held
            with self._ending(session), _memory("a session's memory"):
                held.nbytes = self._hands.perform(commands.Open(session, avatar.digest, seed))
                self._rebuild(session, held, tail)

    def submit(self, session: str, chunk: Chunk) -> None:
        """Ask for a chunk; one of an earlier turn is dropped, since nobody will see it.

        Raises:
            BadInput: it is not the session's next chunk, or its speech does not fit.
            NotFound: no such session.
        """
        held = self._find(session)
        checks.check_whole("chunk.turn", chunk.turn)
        checks.check_whole("chunk.chunk", chunk.chunk)
        if chunk.turn < held.turn:
            return
        if not math.isfinite(chunk.slack):
            raise BadInput("chunk.slack", got=chunk.slack, expected="a finite number of seconds")
        if chunk.chunk != held.next_chunk:
            raise BadInput("chunk.chunk", got=chunk.chunk, expected=str(held.next_chunk))
        if len(held.waiting) == _QUEUED:
            raise BadInput("chunk", got="one more", expected=f"at most {_QUEUED} chunks waiting")
        checks.check_speech("chunk.speech", chunk.speech, held.faces, self.spec)
        held.turn, held.next_chunk = chunk.turn, chunk.chunk + 1
        held.waiting.append((chunk, self._clock() + chunk.slack))

    def step(self) -> list[Drawn | Ended]:
        """Draw the most urgent chunk, and others with it where that is cheaper; [] if none waits.

        The latents are in host memory. Call `settle` when they have been handed on.
        """
        outcomes: list[Drawn | Ended] = [*self._untold, *self.settle()]
        self._untold = []
        ready = [
            Ready(name, held.waiting[0][1], (held.faces, held.finished))
            for name, held in self._sessions.items()
            if held.waiting
        ]
        if not ready or self._broken is not None:
            return outcomes
        batch = pick(ready, self._costs, now=self._clock(), most=self._limits.rows)
        with self._working():
            return outcomes + self._draw([item.session for item in batch])

    def settle(self) -> list[Ended]:
        """Finish what `step` began: chunks just drawn have become context for the next ones."""
        if self._unsettled is None:
            return []
        batch, self._unsettled = self._unsettled, None
        began = self._clock()
        with self._working():
            ended = [] if self._queues else self._remember(batch)
            ended += self._finish(batch)
        alive = [self._sessions[name] for name in batch.sessions if name in self._sessions]
        for held in alive:
            self._one_more(held)
        if len(alive) == len(batch.jobs):
            self._costs.record(len(alive), batch.seconds + self._clock() - began)
        return ended

    def rewind(self, session: str, *, turn: int, tail: LogTail) -> None:
        """Go back to the end of `tail`: what came after it was never seen by anybody.

        Raises:
            BadInput: the tail does not fit, or the turn is older than the session's.
            NotFound: no such session.
            EngineFailure: its passes failed; the session has ended.
        """
        self._usable()
        held = self._find(session)
        checks.check_whole("rewind.turn", turn)
        if turn < held.turn:
            raise BadInput("rewind.turn", got=turn, expected=f"at least {held.turn}")
        checks.check_tail(tail, held.faces, self.config)
        self._untold += self.settle()
        held = self._find(session)
        held.waiting.clear()
        held.turn = turn
        with self._working(), self._ending(session):
            self._hands.perform(commands.Forget(session))
            self._rebuild(session, held, tail)

    def close(self, session: str) -> None:
        """Forget a session; none of that name is fine."""
        if session in self._sessions:
            self._forget(session)

    def health(self, *, limit: float) -> str | None:
        """Why this engine cannot be relied on, or None. May be asked from another thread.

        Args:
            limit: seconds after which work that has not ended is taken for hung.
        """
        if self._broken is not None:
            return str(self._broken)
        since = self._busy_since
        if since is not None and self._clock() - since > limit:
            return f"the device has been busy for more than {limit:g} s"
        return None

    def probe(self) -> list[Ended]:
        """Ask every rank for an answer; `health` knows the result."""
        if self._broken is not None:
            return []
        try:
            with self._working():
                self._hands.perform(commands.Finish())
        except RankLost as error:
            return self._end([], error)
        return []

    def expect(self, chunk_seconds: dict[int, float]) -> None:
        """Take these times, by rows in a batch, for measured, instead of all measured so far."""
        self._costs = Costs()
        for rows, seconds in chunk_seconds.items():
            self._costs.record(rows, seconds)

    def stats(self) -> EngineStats:
        return EngineStats(
            sessions=len(self._sessions),
            slots=self._slots(),
            queued=sum(len(held.waiting) for held in self._sessions.values()),
            drawn=self._drawn,
            late=self._late,
            failed=self._failed,
            load=self._load(len(self._sessions)),
            session_bytes=sum(held.nbytes for held in self._sessions.values()),
            chunk_seconds=self._costs.measured(),
            avatars=self._shelf.stats(),
        )

    def _draw(self, names: Sequence[str]) -> list[Drawn | Ended]:
        """Draw the first waiting chunk of every session."""
        outcomes: list[Drawn | Ended] = []
        jobs: list[_Job] = []
        for name in names:
            held = self._sessions[name]
            chunk, deadline = held.waiting.popleft()
            try:
                part = self._part(name, held, chunk.chunk, chunk.speech)
                jobs.append(_Job(chunk, deadline, part))
            except Exception as error:  # noqa: BLE001 - the session boundary
                outcomes += self._end([name], error)
        return outcomes + self._run(jobs) if jobs else outcomes

    def _run(self, jobs: Sequence[_Job]) -> list[Drawn | Ended]:
        """Draw in one batch; where that fails, one by one, so that only the cause of it ends."""
        began, names = self._clock(), [job.part.session for job in jobs]
        try:
            copy = self._hands.perform(commands.Denoise(tuple(job.part for job in jobs)))
            if self._queues:
                self._hands.perform(commands.Remember())
            latents = copy.wait()
        except Exception as error:  # noqa: BLE001 - the session boundary
            if len(jobs) == 1 or isinstance(error, RankLost):
                return [*self._end(names, error)]
            outcomes: list[Drawn | Ended] = []
            for job in jobs:
                outcomes += [*self._run([job]), *self.settle()]
            return outcomes
        self._unsettled = _Batch(jobs, latents, self._clock() - began)
        return [self._deliver(job, row) for job, row in zip(jobs, latents, strict=True)]

    def _remember(self, batch: _Batch) -> list[Ended]:
        """The context pass; if it fails, session by session, so that only the cause of it ends."""
        try:
            self._hands.perform(commands.Remember())
        except Exception as error:  # noqa: BLE001 - the session boundary
            if len(batch.jobs) == 1 or isinstance(error, RankLost):
                return self._end(batch.sessions, error)
            pairs = zip(batch.jobs, batch.latents, strict=True)
            return [one for job, row in pairs for one in self._replay(job.part, row)]
        return []

    def _replay(self, part: Part, latents: Tensor) -> list[Ended]:
        """What is context already in the log becomes it here, of a session that is still open."""
        if part.session not in self._sessions:
            return []
        try:
            self._hands.perform(commands.Replay(part, latents))
        except Exception as error:  # noqa: BLE001 - the session boundary
            return self._end([part.session], error)
        return []

    def _finish(self, batch: _Batch) -> list[Ended]:
        """Wait for the device. What it says now is about all that it was told."""
        if self._broken is not None:
            return []
        try:
            self._hands.perform(commands.Finish())
        except Exception as error:  # noqa: BLE001 - the session boundary
            return self._end(batch.sessions, error)
        return []

    def _one_more(self, held: _Session) -> None:
        held.finished = min(held.finished + 1, self.config.context.chunks)

    def _deliver(self, job: _Job, latents: Tensor) -> Drawn | Ended:
        name = job.part.session
        if not bool(latents.isfinite().all()):
            reason = NotANumber(f"chunk {job.chunk.chunk} came out as not a number")
            return self._end([name], reason)[0]
        late = self._clock() - job.deadline
        self._drawn += 1
        self._late += late > 0
        return Drawn(name, job.chunk.turn, job.chunk.chunk, latents, late)

    def _part(self, name: str, held: _Session, chunk: int, speech: Sequence[Speech]) -> Part:
        """What the device needs of a chunk; the session's ears hear it."""
        if not held.ears:
            return Part(name, chunk, None, listening=False)
        pairs = zip(held.ears, speech, strict=True)
        heard = [ear.hear(chunk, one) for ear, one in pairs]
        embeddings, flags = (torch.stack(list(each)) for each in zip(*heard, strict=True))
        listening = all(one.mode is Mode.LISTENING for one in speech)
        return Part(name, chunk, Heard(embeddings, flags), listening)

    def _rebuild(self, session: str, held: _Session, tail: LogTail) -> None:
        """Make the session what it was at the end of `tail`."""
        held.ears = [self._ear() for _ in range(held.faces)]
        held.finished, held.next_chunk = 0, tail.next_chunk
        with_latents = checks.replayed(tail, self.config)
        for past in tail.chunks[: len(tail.chunks) - len(with_latents)]:
            for ear, speech in zip(held.ears, past.speech, strict=True):
                ear.remember(speech)
        for past in with_latents:
            assert past.latents is not None, "a tail is checked before it is used"
            part = self._part(session, held, past.chunk, past.speech)
            self._hands.perform(commands.Replay(part, past.latents))
            self._one_more(held)

    def _ear(self) -> Ear:
        assert self._front_end is not None, "a model that hears has a front end"
        assert self.config.hearing is not None
        return Ear(self._front_end, self.config.hearing, self.spec)

    def _take(self, avatar: Avatar) -> None:
        try:
            with _memory("an avatar's memory"):
                self._shelf.take(avatar)
        except RankLost as error:
            self._untold += self._end([], error)
            raise
        except TalkingMachinesError:
            raise
        except Exception as error:
            raise _typed(error) from error

    def _admit(self) -> None:
        if len(self._sessions) >= self._slots() + self._limits.headroom:
            raise NoCapacity("another session", retry_after=_RETRY_AFTER)

    def _slots(self) -> int:
        # One is always let in: times that one stall has spoilt are mended by drawing alone.
        fitting = (n for n in range(self._limits.sessions, 1, -1) if admits(self._load(n)))
        return next(fitting, 1)

    def _load(self, sessions: int) -> float:
        period, most = self.spec.chunk_seconds, self._limits.rows
        return load(sessions, self._costs, period=period, most=most)

    def _find(self, session: str) -> _Session:
        if session not in self._sessions:
            raise NotFound("session", session)
        return self._sessions[session]

    def _usable(self) -> None:
        if self._broken is not None:
            raise RankLost(str(self._broken))  # a new one: what is raised again grows its traceback

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Let `health` see that the device was given work, and since when."""
        self._busy_since = self._clock()
        try:
            yield
        finally:
            self._busy_since = None

    @contextmanager
    def _ending(self, session: str) -> Iterator[None]:
        """What fails inside ends the session."""
        try:
            yield
        except Exception as error:
            ended = self._end([session], error)
            self._untold += [one for one in ended if one.session != session]
            raise _typed(error) from error

    def _end(self, names: Sequence[str], error: Exception) -> list[Ended]:
        """End sessions because of `error`: those named, or all when a rank is lost."""
        reason = _typed(error)
        if isinstance(reason, RankLost):
            self._broken, names = reason, list(self._sessions)
        # Some of a batch may have been closed, or have ended, since it was drawn.
        open_still = [name for name in names if name in self._sessions]
        for name in open_still:
            _log.error("session %s ended: %s", name, reason, exc_info=error)
            self._forget(name)
        self._failed += len(open_still)
        return [Ended(name, _typed(error)) for name in open_still]

    def _forget(self, name: str) -> None:
        held = self._sessions.pop(name)
        if self._broken is not None:
            return
        try:
            self._hands.perform(commands.Close(name))
            self._shelf.give_back(held.digest)
        except RankLost as error:
            self._untold += self._end([], error)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    chunk: Chunk
    deadline: float
    part: Part


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """What was drawn and is not context yet."""

    jobs: Sequence[_Job]
    latents: Tensor  # [B, C, F, h, w]
    seconds: float  # so far

    @property
    def sessions(self) -> list[str]:
        return [job.part.session for job in self.jobs]


@contextmanager
def _memory(what: str) -> Iterator[None]:
    """For someone who is not in yet, memory that is short is a reason to come again."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NoCapacity(what, retry_after=_RETRY_AFTER) from error


def _typed(error: Exception) -> TalkingMachinesError:
    """What a caller may know of a failure; of a lost rank, everybody gets an error of their own."""
    if isinstance(error, RankLost):
        return RankLost(str(error))
    if isinstance(error, TalkingMachinesError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory("out of memory")
    return EngineFailure(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
