"""Play frames and the speech that belongs to them, together, on one media clock.

On the path: vae → **pacer** → client. The only place that knows playout. It pulls: a chunk is
asked for when what is made ahead falls below its target, so generation never runs away; while the
character listens, only as late as measured chunk times allow, so that speech begins soon.

Media time is counted in frames. When a frame is not there at its time, the picture is held and
the clock waits; nothing is skipped. Time is the event loop's, so tests and simulations run this
file on a loop whose time is virtual.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Protocol

from services.gateway.chunk import Chunk, Rewind
from services.gateway.chunker import Chunker
from services.gateway.log import SessionLog
from services.gateway.spans import Spans
from services.gateway.wake import Wake
from services.runtime.metrics import DropReason, GatewayMetrics, Stage
from services.runtime.metrics import Mode as ModeLabel
from talkingmachines.media import Mode, Pcm
from talkingmachines.picture import VideoFrame
from talkingmachines.spec import StreamSpec

_MARGIN = 1.5  # times what chunks needed of late: when a listening one is asked for at the latest
_LEAST_NOTICE_SECONDS = 0.15  # however quick engines are: processes and wires have their moods
_FORGET = 0.1  # share by which a slow chunk is forgotten with every new one
_INSTANT_SECONDS = 1e-4  # not worth a timer; also absorbs rounding
_PUNCTUAL_SECONDS = 0.02  # a frame this late is on time: timers are no better


@dataclass(frozen=True, slots=True)
class Lead:
    """How far generation may run ahead of playout, in seconds of media."""

    target: float = 1.0
    viewer_lag: float = 1.0  # how far a client may play behind what was sent to it


class Sink(Protocol):
    """Whoever shows what is played."""

    def frame(self, frame: VideoFrame) -> bool:
        """Take a picture; False when it had to be dropped."""

    def sound(self, pcm: Pcm) -> None: ...
    def held(self, frame: int, seconds: float) -> None:
        """The media clock stood still so long before `frame`."""

    def turn_started(self, turn: int, sample: int, speaker: int) -> None: ...
    def turn_ended(self, turn: int, sample: int) -> None: ...


@dataclass(slots=True)
class Playout:
    """What happened so far, for statistics."""

    chunks: int = 0
    frames_sent: int = 0
    frames_dropped: int = 0
    deadline_misses: int = 0
    holds: int = 0
    held_seconds: float = 0.0
    skew_seconds: float = 0.0  # pictures minus sound, as sent
    first_frame_seconds: float | None = None  # since the session was opened
    answer_seconds: float | None = None  # CONVERSE: of the last answer, from the user's last sound
    # How long before its time the slowest chunk of late had to be asked for, so that no frame of it
    # came late. Frames come while earlier ones are shown: less than the chunk takes.
    needed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Position:
    """A place on the media clock: one past the last frame shown and the last sample heard."""

    frame: int
    sample: int


class Pacer:
    """One session's playout.

    Args:
        keep: chunks before the played one that the log must hold.
        opened_at: loop time at which the client asked for the session.
        start: where the media clock begins (a resumed session not at 0).
    """

    def __init__(
        self,
        spec: StreamSpec,
        log: SessionLog,
        chunker: Chunker,
        sink: Sink,
        *,
        lead: Lead,
        keep: int,
        metrics: GatewayMetrics,
        spans: Spans,
        start: Position,
        opened_at: float,
    ) -> None:
        self._spec = spec
        self._log = log
        self._chunker = chunker
        self._sink = sink
        self._lead = lead
        self._keep = keep
        self._opened_at = opened_at
        self._metrics = metrics
        self._spans = spans
        self._clock = asyncio.get_running_loop().time
        self._asking, self._showing = Wake(), Wake()  # what `wanted` and `_release` wait for
        self._origin: float | None = None  # loop time of frame 0, once the clock runs
        self._next = start  # to be sent
        self._played = start  # by the client
        self._made_at = 0.0  # loop time of the newest chunk's last frame
        self._played_at = 0.0  # loop time of its last report
        self._reported = False  # whether the client ever said what it played
        self._catch_up = start.frame  # frames below were sent before: they go out at once
        self._frames: dict[int, VideoFrame] = {}
        self._asked: dict[int, float] = {}  # when each chunk was asked for
        self.turn = 0  # that the last interruption began; media of lower turns is void
        self._ended_turn = 0  # the highest of which the client was told
        self._rewinds: deque[Rewind] = deque()
        self._hanging_up = False
        self._source_over = False
        self._ripe_at: float | None = None  # since when the next chunk may be asked for
        self._needed = 0.0  # by the chunk that is coming
        self.playout = Playout(needed_seconds=spec.chunk_seconds)

    # ---- Asking for chunks ----

    async def wanted(self) -> AsyncIterator[Chunk | Rewind]:
        """Chunks, each at the time at which it should be made; and rewinds."""
        while not (self._hanging_up and self._chunker.silent and not self._rewinds):
            if self._rewinds:
                yield self._rewinds.popleft()
                continue
            chunk = self._log.next_chunk
            early = self._early(chunk)
            if early > _INSTANT_SECONDS:
                await self._asking.wait(early)
                continue
            yield self._cut(chunk)

    def _cut(self, chunk: int) -> Chunk:
        """The next chunk, written down."""
        cut, now = self._chunker.cut(chunk), self._clock()
        waited = now - (self._ripe_at or now)
        self._metrics.chunk_seconds.labels(Stage.SPEECH).observe(waited)
        self._ripe_at = None
        self._log.append(cut)
        self._spans.asked(cut)
        self._asked[chunk] = now
        return cut

    def slack(self, chunk: int) -> float:
        """Seconds until the chunk's first frame is due; negative when it is late."""
        frames = self._spec.first_frame(chunk) - self._next.frame
        if self._origin is None:
            return frames / self._spec.fps
        return self._due(self._spec.first_frame(chunk)) - self._clock()

    def speech_changed(self) -> None:
        """The chunker got something; a chunk that it does not complete is not asked for sooner."""
        if self._chunker.complete:
            self._asking.give()

    def hang_up(self) -> None:
        """Nothing more will be said: play what is left, then end."""
        self._hanging_up = True
        self._asking.give()

    def _early(self, chunk: int) -> float:
        """Seconds until the chunk is to be asked for."""
        ahead = self._ahead(chunk)
        if ahead > self._lead.target:
            return ahead - self._lead.target
        self._ripe_at = self._ripe_at or self._clock()
        if self._chunker.complete or self._hanging_up:
            return 0.0
        notice = max(_LEAST_NOTICE_SECONDS, _MARGIN * self.playout.needed_seconds)
        return ahead - min(self._lead.target, notice)

    def _ahead(self, chunk: int) -> float:
        """Seconds of media before the chunk. While the picture is held, time does not shorten it:
        else everything that a hanging engine delays would be asked for meanwhile."""
        if self._origin is None:
            return self.slack(chunk)
        awaited = max(self._next.frame, self._catch_up)
        held = max(0.0, self._clock() - self._due(awaited))
        return self.slack(chunk) + held

    # ---- Playing ----

    async def play(self, frames: AsyncIterator[VideoFrame | Rewind]) -> None:
        """Play until the frames end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._collect(frames))
            await self._release()

    async def _collect(self, frames: AsyncIterator[VideoFrame | Rewind]) -> None:
        async for frame in frames:
            if isinstance(frame, Rewind) or frame.turn < self.turn:
                continue  # what a rewind does here was done when it was asked for
            if frame.frame >= self._next.frame:
                self._frames[frame.frame] = frame
            self._came(frame)
            if frame.frame + 1 == self._spec.first_frame(frame.chunk + 1):
                self._made(frame.chunk)
                self._asking.give()
            if frame.frame == self._next.frame:  # nobody waits for any other
                self._showing.give()
        self._source_over = True
        self._showing.give()

    async def _release(self) -> None:
        while True:
            frame = self._frames.get(self._next.frame)
            if frame is None:
                if self._source_over:
                    return
                await self._showing.wait()
                continue
            early = self._due(frame.frame) - self._clock()
            if early > _INSTANT_SECONDS and frame.frame >= self._catch_up:
                await self._showing.wait(early)
                continue
            self._wait_for_late(frame.frame, -early)
            self._send(self._frames.pop(frame.frame))

    def _due(self, frame: int) -> float:
        if self._origin is None:  # the clock starts with the first frame
            self._origin = self._clock() - frame / self._spec.fps
            self._asking.give()
        return self._origin + frame / self._spec.fps

    def _wait_for_late(self, frame: int, late: float) -> None:
        """Let the clock wait for a frame that came late: what follows keeps its distance."""
        if late <= _PUNCTUAL_SECONDS or frame < self._catch_up:
            return
        assert self._origin is not None
        self._origin += late
        self.playout.holds += 1
        self.playout.held_seconds += late
        self._sink.held(frame, late)
        self._metrics.stalls.inc()
        self._metrics.stall_seconds.inc(late)
        self._metrics.stall_length.observe(late)

    def _send(self, frame: VideoFrame) -> None:
        """Release one frame, the sound that belongs to it, and what happens at its time."""
        entry = self._log.entry(frame.chunk)
        assert entry is not None, "the log holds what is played"
        chunk = entry.chunk
        end = max(self._next.sample, self._spec.sample_of_frame(frame.frame + 1))
        if chunk.begins is not None and frame.frame == self._spec.first_frame(frame.chunk):
            self._end_turns(chunk, self._next.sample)
            first = self._spec.first_sample(frame.chunk)
            self._sink.turn_started(chunk.turn, first, chunk.begins)
        if self._sink.frame(frame):
            self.playout.frames_sent += 1
        else:
            self.playout.frames_dropped += 1
            self._metrics.frames_dropped.labels(DropReason.SLOW_VIEWER).inc()
        if self.playout.first_frame_seconds is None:
            self.playout.first_frame_seconds = self._clock() - self._opened_at
            self._metrics.first_frame.observe(self.playout.first_frame_seconds)
        self._sound(chunk, frame.turn, self._next.sample, end)
        self._end_turns(chunk, end)
        self._next = Position(frame.frame + 1, end)
        if not self._reported:
            self._played = self._next
        self._forget()

    def _sound(self, chunk: Chunk, turn: int, start: int, end: int) -> None:
        if end == start:
            return
        first = self._spec.first_sample(chunk.chunk)
        skew = self._next.frame / self._spec.fps - start / self._spec.sample_rate
        self.playout.skew_seconds = skew
        self._metrics.av_skew.observe(abs(skew))
        rate, within = self._spec.sample_rate, slice(2 * (start - first), 2 * (end - first))
        voices = [(part.speaker, part.speech.samples[within]) for part in chunk.speech]
        for speaker, samples in voices or [(0, bytes(2 * (end - start)))]:
            self._sink.sound(Pcm(samples, rate, start, turn, chunk.chunk, speaker))

    def _end_turns(self, chunk: Chunk, sample: int) -> None:
        """Tell the turns that are over by `sample`."""
        for over in chunk.ends:
            end = self._spec.first_sample(chunk.chunk) + over.samples
            if over.turn > self._ended_turn and end <= sample:
                self._ended_turn = over.turn
                self._spans.turn_over(over.turn)
                self._sink.turn_ended(over.turn, end)

    def _came(self, frame: VideoFrame) -> None:
        """Note how long before its chunk's time this frame had to be asked for."""
        asked = self._asked.get(frame.chunk)
        if asked is not None:
            later = (frame.frame - self._spec.first_frame(frame.chunk)) / self._spec.fps
            self._needed = max(self._needed, self._clock() - asked - later)

    def _made(self, chunk: int) -> None:
        """A chunk's last frame is here."""
        now, asked = self._clock(), self._asked.pop(chunk, None)
        self._spans.made(chunk)
        if self.playout.chunks:
            self._metrics.chunk_interarrival.observe(now - self._made_at)
        self._made_at = now
        self.playout.chunks += 1
        late = self._origin is not None and self.slack(chunk) < -self._spec.chunk_seconds
        if late:
            self.playout.deadline_misses += 1
            self._metrics.deadline_misses.inc()
        if asked is not None:
            seconds = now - asked
            slow, needed = self.playout.needed_seconds, self._needed
            self.playout.needed_seconds = max(needed, slow + _FORGET * (needed - slow))
            self._needed = 0.0
            self._metrics.realtime_ratio.observe(seconds / self._spec.chunk_seconds)
        entry = self._log.entry(chunk)
        speaking = entry is not None and entry.chunk.mode is Mode.SPEAKING
        self._metrics.chunks.labels(ModeLabel.SPEAKING if speaking else ModeLabel.LISTENING).inc()
        self._metrics.playout_lead.observe(self.lead_seconds)
        if self._origin is not None:
            waits = max(0.0, self.slack(chunk))
            self._metrics.chunk_seconds.labels(Stage.PLAYOUT).observe(waits)

    # ---- Where the client is ----

    @property
    def next(self) -> Position:
        """What will be sent next."""
        return self._next

    @property
    def lead_seconds(self) -> float:
        """Media that is made and not sent."""
        return len(self._frames) / self._spec.fps

    def played(self, position: Position, *, turn: int) -> None:
        """The client says how far it has played, in `turn` (0: it does not say in which).

        More than was sent, less than before, and what an interruption voided is not believed.
        """
        if 0 < turn < self.turn:
            return
        before = self._played if self._reported else Position(0, 0)
        self._reported = True
        lag = round(self._lead.viewer_lag * self._spec.fps)
        frame = max(position.frame, before.frame, self._next.frame - lag)
        frame = min(frame, self._next.frame)
        least = max(before.sample, self._spec.sample_of_frame(max(0, frame - lag)))
        self._played = Position(frame, min(max(position.sample, least), self._next.sample))
        self._played_at = self._clock()

    @property
    def shown(self) -> Position:
        """Where the client is now: what it reported, and the time that has passed since."""
        if not self._reported:
            return self._next
        passed, spec = self._clock() - self._played_at, self._spec
        frame = self._played.frame + int(passed * spec.fps)
        sample = self._played.sample + int(passed * spec.sample_rate)
        return Position(min(frame, self._next.frame), min(sample, self._next.sample))

    def note_answer(self, seconds: float) -> None:
        """The user waited so long for the first picture of an answer."""
        self.playout.answer_seconds = seconds
        self._metrics.answer.observe(seconds)

    def speaking(self, turn: int) -> bool:
        """Whether speech of `turn` or later was cut and is not played."""
        playing = self._spec.chunk_of_sample(self.shown.sample)
        return any(
            entry.chunk.speech and entry.chunk.turn >= max(turn, self.turn)
            for entry in self._log.entries
            if entry.chunk.chunk >= playing
        )

    def rewind(self, turn: int) -> Position:
        """Void what is not played; `turn` begins where the client is. Returns where that is."""
        at, spec = self.shown, self._spec
        playing = -(-at.frame // spec.frames_per_chunk)  # one past the chunk being shown
        floor = spec.first_sample(at.frame // spec.frames_per_chunk)
        at = Position(at.frame, min(max(at.sample, floor), spec.first_sample(playing)))
        unheard = max(0, self._next.sample - at.sample) / spec.sample_rate
        self._metrics.interrupt_to_silence.observe(unheard)
        boundary = spec.first_frame(playing)
        kept = {
            number: replace(frame, turn=turn)
            for number, frame in self._frames.items()
            if at.frame <= number < boundary
        }
        whole = len(kept) == boundary - at.frame
        positions = self._chunker.positions
        self._log.rewind(turn, playing, silent_from=at.sample, positions=positions)
        self._frames = kept if whole else {}
        self.turn = turn
        self._catch_up = max(self._next.frame, self._catch_up)
        self._next = at
        self._asked.clear()
        self._needed = 0.0
        self._spans.cut_off()
        decode_from = playing if whole else playing - 1
        first_frame = boundary if whole else at.frame
        self._rewinds.append(Rewind(turn, playing, decode_from, first_frame))
        self._asking.give()
        self._showing.give()
        return at

    def _forget(self) -> None:
        lag = round(self._lead.viewer_lag * self._spec.fps)
        oldest = max(self._played.frame, self._next.frame - lag)
        self._log.trim(oldest // self._spec.frames_per_chunk - self._keep)
