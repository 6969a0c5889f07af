"""Many streams on one device: who is next, and whose failure it is.

On the path: score → **vae engine** → codecs → gateway. No thread, no event loop and no wire format:
one thread calls it, `step()` by `step()`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from services.accelerator.copies import HostCopies
from services.vae.admission import Admission, Limits
from services.vae.config import VaeConfig
from services.vae.pixels import Pixels, from_rgb, to_pixels
from services.vae.runner import Runner
from services.vae.session import (
    Chunk,
    Decoded,
    Event,
    Failed,
    Fault,
    InFlight,
    Opening,
    Ready,
    Rebuild,
    Session,
    Spent,
    check_latents,
)
from services.vae.state import State
from talkingmachines.errors import BadInput, EngineFailure, NotFound
from talkingmachines.spec import StreamSpec

_log = logging.getLogger(__name__)

_QUEUED = 32  # pieces of work that a session may have waiting; a session that needs more is lost


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot. Counters end in `_total` and only grow."""

    sessions: int
    queued: int  # chunks and rebuilds that wait
    session_bytes: int  # promised to the open sessions
    limit_bytes: int
    load: float  # share of the device's time that the open sessions need
    fitting: int  # sessions that memory and time suffice for
    chunk_seconds: float  # running mean of the device time of a chunk
    chunks_total: int
    frames_total: int
    late_total: int  # chunks whose frames were ready after their deadline
    rebuilds_total: int
    failures_total: int
    refusals_total: int
    decode_seconds_total: float
    rebuild_seconds_total: float


@dataclass(slots=True)
class _Counters:
    chunks: int = 0
    frames: int = 0
    late: int = 0
    rebuilds: int = 0
    failures: int = 0
    decode_seconds: float = 0.0
    rebuild_seconds: float = 0.0


class Engine:
    """Decodes sessions by earliest deadline.

    `open`, `submit` and `rewind` check and queue; `step` does one piece of device work: one latent
    of a chunk, or of a batch of them, or a piece of a rebuild, which is no longer. So frames leave
    when their latent is decoded, and the first of a chunk need not wait for its last.
    """

    def __init__(
        self, runner: Runner, limits: Limits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._admission = Admission(limits)
        self._sessions: dict[str, Session] = {}
        self._in_flight: deque[InFlight] = deque()
        self._last_arrival = clock()
        self._count = _Counters()
        with runner.active():
            # Room for two passes: one on its way while the next is decoded.
            self._copies = HostCopies(runner.device, in_flight=2 * (limits.batch + 1))

    def prepare(self, spec: StreamSpec) -> None:
        """Compile, record and time what sessions of `spec` will run, before the first is admitted.

        Raises:
            BadInput: a stream that this VAE cannot make.
        """
        size = self._latent_size(spec)
        channels = self._runner.config.latent_channels
        for batch in range(1, self._admission.limits.batch + 1):
            latents = torch.zeros(batch, channels, 1, *size)  # and what they are anchored to
            with self._runner.active():
                states = [self._runner.begin(row[None], row[None, :, :0]) for row in latents]
                self._time(latents, states)  # pays for the preparations
                seconds = self._time(latents, states)
            self._admission.measured(spec, spec.latents_per_chunk * seconds / batch)

    def open(self, name: str, opening: Opening) -> None:
        """Take up a stream. A later `step` builds its state.

        Raises:
            BadInput: the stream does not fit this VAE, or the name is taken.
            NoCapacity: the memory for one more session is not there.
        """
        if name in self._sessions:
            raise BadInput("attach.session", got=repr(name), expected="a name that is not open")
        _check_deadline("attach.deadline", opening.deadline)
        _check_next("attach.tail.next_chunk", opening.next_chunk)
        rows, columns = self._latent_size(opening.spec)
        channels = self._runner.config.latent_channels
        check_latents("attach.anchor", opening.anchor, (channels, 1, rows, columns))
        check_latents("attach.tail", opening.tail, (channels, None, rows, columns))
        self._admission.admit(name, opening.spec, self._runner.session_bytes(rows, columns))
        session = Session(name, opening.spec, opening.pixels, opening.anchor, opening.next_chunk)
        session.queue.append(self._rebuild_from(session, opening.tail, opening.deadline))
        self._sessions[name] = session

    def submit(self, name: str, chunk: Chunk) -> None:
        """Queue the next chunk of a stream.

        Raises:
            NotFound: no such session (it may have failed).
            BadInput: not the next chunk, or latents that do not fit.
        """
        session = self._session(name)
        channels, _, rows, columns = session.anchor.shape
        _check_deadline("chunk.deadline", chunk.deadline)
        if len(session.queue) >= _QUEUED:
            raise BadInput("chunk", got="one more", expected=f"at most {_QUEUED} waiting")
        if chunk.number != session.next_chunk:
            expected = str(session.next_chunk)
            raise BadInput("chunk.latents.chunk", got=chunk.number, expected=expected)
        shape = (channels, session.spec.latents_per_chunk, rows, columns)
        check_latents("chunk.latents.tensor", chunk.latents, shape)
        session.queue.append(chunk)
        session.next_chunk += 1

    def rewind(self, name: str, tail: Tensor, *, next_chunk: int, deadline: float) -> None:
        """Go on at `next_chunk`, after `tail`; what waits or is on its way is dropped.

        Raises:
            NotFound: no such session.
            BadInput: a tail that does not fit.
        """
        old = self._session(name)
        channels, _, rows, columns = old.anchor.shape
        _check_deadline("rewind.deadline", deadline)
        _check_next("rewind.tail.next_chunk", next_chunk)
        check_latents("rewind.tail", tail, (channels, None, rows, columns))
        # Another object under the same name: frames that are on their way belong to the old one,
        # and chunk numbers come again after a rewind.
        session = Session(name, old.spec, old.pixels, old.anchor, next_chunk, old.rewinds + 1)
        session.queue.append(self._rebuild_from(session, tail, deadline))
        self._sessions[name] = session

    def close(self, name: str) -> None:
        """Forget a stream and free its memory; frames on their way are dropped.

        Raises:
            NotFound: no such session.
        """
        self._drop(self._session(name))

    def step(self) -> list[Event]:
        """Do the most urgent piece of work, and hand out what has arrived on the host.

        While more work waits, frames are handed out by a later step, so that their way to the host
        lies under the next decoding; with nothing left to do it waits for them. An empty list with
        nothing queued means that there is nothing to do.

        Raises:
            RuntimeError: the device itself is broken; no session on it can go on.
        """
        events: list[Event] = []
        with self._runner.active():
            waiting = [session for session in self._sessions.values() if session.queue]
            if waiting:
                events += self._run(min(waiting, key=lambda session: session.deadline))
            while self._in_flight and (self._in_flight[0].ready() or not self._queued()):
                events += self._arrive(self._in_flight.popleft())
        return events

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._in_flight) or self._queued() > 0

    def encode(self, frames: Tensor) -> Tensor:
        """Latents [Z, T, h, w], float32, of a picture or clip: uint8 RGB [F, H, W, 3] on the host.

        Raises:
            BadInput: sides or the number of frames do not fit this VAE.
        """
        _check_frames(frames, self._runner.config.spatial_stride, self.frames_per_latent)
        with self._runner.active():
            latents = self._runner.encode(from_rgb(frames)[None])[0]
            return self._copies.start(latents.float()).wait()

    @property
    def frames_per_latent(self) -> int:
        return self._runner.config.frames_per_latent

    @property
    def reach(self) -> int:
        """Latents of tail after which a rebuilt session equals the one that it replaces."""
        return self._runner.vae.reach

    @property
    def config(self) -> VaeConfig:
        return self._runner.config

    def session_bytes(self, height: int, width: int) -> int:
        """Device memory that one session of so many pixels will hold. Any thread may ask.

        Raises:
            ValueError: not a picture that this VAE can make; names the side.
        """
        return self._runner.session_bytes(*self.config.latent_size(height, width))

    def statistics(self) -> Statistics:
        return Statistics(
            sessions=len(self._sessions),
            queued=self._queued(),
            session_bytes=self._admission.bytes,
            limit_bytes=self._admission.limits.memory_bytes,
            load=self._admission.load,
            fitting=self._admission.fitting,
            chunk_seconds=self._admission.chunk_seconds,
            chunks_total=self._count.chunks,
            frames_total=self._count.frames,
            late_total=self._count.late,
            rebuilds_total=self._count.rebuilds,
            failures_total=self._count.failures,
            refusals_total=self._admission.refusals,
            decode_seconds_total=self._count.decode_seconds,
            rebuild_seconds_total=self._count.rebuild_seconds,
        )

    def _time(self, latents: Tensor, states: list[State]) -> float:
        started = self._clock()
        frames, _ = self._runner.decode(latents, states)
        for row in frames:
            self._copies.start(to_pixels(row, Pixels.RGB24)).wait()
        return self._clock() - started

    def _run(self, session: Session) -> list[Event]:
        work = session.queue.popleft()
        if isinstance(work, Rebuild):
            return self._rebuild(session, work)
        return self._decode([(session, work), *self._companions(session, work)])

    def _companions(self, first: Session, chunk: Chunk) -> list[tuple[Session, Chunk]]:
        """Chunks of other sessions, most urgent first, that go in the same pass."""
        fitting = [
            session
            for session in self._sessions.values()
            if session is not first
            and session.queue
            and isinstance(session.queue[0], Chunk)
            and session.queue[0].latents.shape == chunk.latents.shape
        ]
        fitting.sort(key=lambda session: session.deadline)
        batch = []
        for session in fitting[: self._admission.limits.batch - 1]:
            work = session.queue.popleft()
            assert isinstance(work, Chunk)
            batch.append((session, work))
        return batch

    def _rebuild_from(self, session: Session, tail: Tensor, deadline: float) -> Rebuild:
        # No piece is longer than what others decode at a time, and it rounds as that did.
        pieces = self._runner.rebuild(session.anchor[None], tail[None], latents=1)
        return Rebuild(pieces, deadline)

    def _rebuild(self, session: Session, work: Rebuild) -> list[Event]:
        """One piece of a rebuild; the rest goes back to the head of the session's queue."""
        started = self._clock()
        try:
            state = next(work.pieces)
            finite = state is None or all(bool(slot.isfinite().all()) for slot in state.slots)
        except RuntimeError as error:
            return [self._fail(session, str(error), _fault(error))]
        self._last_arrival = self._clock()
        self._count.rebuild_seconds += self._last_arrival - started
        if state is None:
            session.queue.appendleft(work)
            return []
        session.state = state
        self._count.rebuilds += 1
        if not finite:
            return [self._fail(session, "the rebuilt state is not a number")]
        return [Ready(session.name, session.rewinds)]

    def _decode(self, batch: list[tuple[Session, Chunk]]) -> list[Event]:
        started = self._clock()
        try:
            latents = torch.stack([chunk.next_latent for _, chunk in batch])
            states = [session.state for session, _ in batch]
            frames, fresh = self._runner.decode(latents, states)
            pixels = [
                self._copies.start(to_pixels(row, session.pixels))
                for row, (session, _) in zip(frames, batch, strict=True)
            ]
            finite = self._copies.start(frames.isfinite().flatten(1).all(dim=1))
        except RuntimeError as error:
            if len(batch) > 1:  # whose fault it is shows when each goes alone
                return [event for pair in batch for event in self._decode([pair])]
            return [self._fail(batch[0][0], str(error), _fault(error))]
        # Only now, when nothing can fail any more: a chunk that is tried again finds the old state.
        for (session, chunk), moved in zip(batch, fresh, strict=True):
            session.state.copy_(moved)
            if not chunk.last:
                session.queue.appendleft(chunk.after(session.spec))
        self._in_flight.append(InFlight(batch, pixels, finite, started))
        return []

    def _arrive(self, flight: InFlight) -> list[Event]:
        finite = flight.finite.wait().tolist()
        now = self._clock()
        # The device works on one pass after the other: this one began when it could.
        seconds = now - max(flight.started, self._last_arrival)
        self._last_arrival = now
        self._count.decode_seconds += seconds
        events: list[Event] = []
        for (session, chunk), frames, sound in zip(
            flight.batch, flight.frames, finite, strict=True
        ):
            if self._sessions.get(session.name) is not session:
                continue  # closed, failed or rewound meanwhile
            if not sound:
                events.append(self._fail(session, "decoded frames are not numbers"))
                continue
            events.append(self._decoded(session, chunk, frames.wait(), now, seconds, flight))
        return events

    def _decoded(
        self,
        session: Session,
        chunk: Chunk,
        frames: Tensor,
        now: float,
        seconds: float,
        flight: InFlight,
    ) -> Decoded:
        """One session's part of a pass, counted."""
        spent, spec = session.spent, session.spec
        spent.seconds += seconds
        spent.share += seconds / len(flight.batch)
        spent.late = spent.late or now > chunk.deadline
        self._count.frames += len(frames)
        if chunk.last:
            self._count.chunks += 1
            self._count.late += spent.late
            self._admission.measured(spec, spent.share)
            session.spent = Spent()
        return Decoded(
            session.name,
            session.rewinds,
            chunk.number,
            spec.first_frame(chunk.number) + chunk.decoded * spec.frames_per_latent,
            frames,
            last=chunk.last,
            late=chunk.last and spent.late,
            done=now,
            seconds=spent.seconds,
            sessions=len(flight.batch),
        )

    def _fail(self, session: Session, why: str, fault: Fault = Fault.NOT_A_NUMBER) -> Failed:
        _log.error("vae session %s failed: %s", session.name, why)
        self._count.failures += 1
        self._drop(session)
        return Failed(session.name, EngineFailure(f"decoding failed: {why}"), fault)

    def _drop(self, session: Session) -> None:
        del self._sessions[session.name]
        self._admission.release(session.name)

    def _queued(self) -> int:
        return sum(len(session.queue) for session in self._sessions.values())

    def _session(self, name: str) -> Session:
        try:
            return self._sessions[name]
        except KeyError:
            raise NotFound("decoding session", name) from None

    def _latent_size(self, spec: StreamSpec) -> tuple[int, int]:
        if spec.frames_per_latent != self.frames_per_latent:
            raise BadInput(
                "attach.spec.frames_per_latent",
                got=spec.frames_per_latent,
                expected=str(self.frames_per_latent),
            )
        try:
            return self._runner.config.latent_size(spec.height, spec.width)
        except ValueError as error:
            size = f"{spec.width}x{spec.height}"
            raise BadInput("attach.spec", got=size, expected=str(error)) from error


def _fault(error: RuntimeError) -> Fault:
    memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
    return Fault.MEMORY if memory else Fault.OTHER


def _check_deadline(name: str, deadline: float) -> None:
    if not math.isfinite(deadline):  # it would order nothing
        raise BadInput(name, got=deadline, expected="a finite number of seconds")


def _check_next(name: str, chunk: int) -> None:
    if chunk < 0:
        raise BadInput(name, got=chunk, expected="a chunk's number, 0 or more")


def _check_frames(frames: Tensor, stride: int, per_latent: int) -> None:
    if frames.dim() != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8:
        got = f"{list(frames.shape)} {frames.dtype}"
        raise BadInput("encode.frames", got=got, expected="uint8 RGB [F, H, W, 3]")
    count, height, width, _ = frames.shape
    if not height or not width or height % stride or width % stride:
        expected = f"sides that are multiples of {stride} pixels"
        raise BadInput("encode.frames", got=f"{width}x{height}", expected=expected)
    if count < 1 or (count - 1) % per_latent:
        expected = f"1 frame, or 1 more than a multiple of {per_latent}"
        raise BadInput("encode.frames", got=f"{count} frames", expected=expected)
