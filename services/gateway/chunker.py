"""Cut speech into model-sized chunks.

On the path: client or bridge → **chunker** → log → score. Knows time, not models.

Speech comes in pieces of any size, rate and speed. Every chunk of a turn holds exactly a chunk of
it, whatever the pieces were: when speech is late, a listening chunk goes between, and the speech
goes on afterwards with the sample it stopped at. So what is said is a function of what was sent,
and only the pauses depend on time. A turn begins with a chunk of its own; its last one is filled
up with silence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from math import ceil

from services.gateway.chunk import Chunk, SpeechPosition, TurnEnd
from services.runtime.resample import Resampler
from talkingmachines.errors import BadInput
from talkingmachines.media import Mode, Pcm, SpeakerSpeech
from talkingmachines.spec import StreamSpec

# Media time without new speech after which an utterance counts as complete, for clients that
# never say so.
_PATIENCE_SECONDS = 1.0
_WARM_UP_SECONDS = 0.032  # longer than the resampler's filter


class Chunker:
    """The speech of one session, by turn and speaker.

    Args:
        spec: the stream's geometry.
        speakers: how many the avatar has.
        turn: the turn that is on (of a resumed session).
        positions: where the speech of a resumed session goes on.
    """

    def __init__(
        self,
        spec: StreamSpec,
        *,
        speakers: int,
        turn: int = 0,
        positions: Iterable[SpeechPosition] = (),
    ) -> None:
        self._spec = spec
        self._speakers = speakers
        self._turn = turn
        self._positions = {position.speaker: position for position in positions}
        self._received = {position.speaker: position.sample for position in positions}
        self._turns: deque[_Turn] = deque()
        if any(position.open for position in self._positions.values()):
            self._turns.append(self._reopened())

    def turn_for(self, speaker: int) -> int:
        """The turn that further speech of `speaker` belongs to.

        Who has finished and speaks again waits for the others: that is a new turn.
        """
        for turn in self._turns:
            if speaker in turn.voices and not turn.voices[speaker].ended:
                return turn.number
        if self._turns and self._turns[-1].open and speaker not in self._turns[-1].voices:
            return self._turns[-1].number
        return self.newest_turn + 1

    @property
    def newest_turn(self) -> int:
        """The highest turn number that was given out."""
        return self._turns[-1].number if self._turns else self._turn

    @property
    def positions(self) -> tuple[SpeechPosition, ...]:
        """How much of what was sent is in chunks or was forgotten, by speaker."""
        return tuple(self._positions.values())

    @property
    def buffered_seconds(self) -> float:
        """Speech that waits to be put into chunks, of the speaker that has most of it."""
        waiting: dict[int, int] = {}
        for turn in self._turns:
            for voice in turn.voices.values():
                waiting[voice.speaker] = waiting.get(voice.speaker, 0) + voice.samples
        return max(waiting.values(), default=0) / self._spec.sample_rate

    @property
    def silent(self) -> bool:
        """Whether nothing is left to be said and nothing is expected to follow."""
        return not self._turns

    def speak(self, pcm: Pcm, *, turn: int, first_sample: int | None = None) -> None:
        """Take the next piece of a speaker's speech; that of a turn which is over is left out.

        Args:
            first_sample: where the sender says that it begins, in samples as sent.

        Raises:
            BadInput: no such speaker, another rate than before, or a piece that does not follow
                the last one.
        """
        self._check(pcm, first_sample)
        if turn > self.newest_turn:
            self._turns.append(_Turn(turn))
        open_ = next((known for known in self._turns if known.number == turn), None)
        start = self._received.get(pcm.speaker, 0)
        self._received[pcm.speaker] = start + len(pcm)
        if open_ is not None and len(pcm):
            self._voice(open_, pcm, start).push(pcm)

    def end(self, speaker: int) -> None:
        """The speaker's utterance is complete. Without one going on, nothing happens."""
        self._check_speaker(speaker)
        for turn in self._turns:
            if speaker in turn.voices:
                turn.voices[speaker].end()

    def end_all(self) -> None:
        """Nothing more will come."""
        for turn in self._turns:
            turn.end()

    def interrupt(self, turn: int) -> None:
        """Forget what waits; `turn` begins, listening."""
        assert turn > self._turn
        self._turns.clear()
        self._turn = turn
        for speaker, position in self._positions.items():
            self._positions[speaker] = replace(
                position, sample=self._received[speaker], skip=0, open=False
            )

    @property
    def complete(self) -> bool:
        """Whether a chunk can be cut that waiting for more speech would not change."""
        front = next((turn for turn in self._turns if not turn.over), None)
        if front is None:
            return False
        full = self._spec.samples_per_chunk + self._spec.lookahead_samples
        return all(voice.ended or voice.samples >= full for voice in front.voices.values())

    def cut(self, chunk: int) -> Chunk:
        """The next chunk, as the speech stands now; listening when there is not enough of it."""
        ends = self._pop_finished()
        front = self._turns[0] if self._turns else None
        parts = [] if front is None else self._take(front, chunk)
        if front is None or not parts:
            return Chunk(turn=self._turn, chunk=chunk, ends=ends, positions=self.positions)
        self._turn = front.number
        begins = None if front.begun else parts[0][0].speaker
        front.begun = True
        if front.over:
            self._turns.popleft()
            ends = (*ends, TurnEnd(front.number, max(spoken for _, spoken in parts)))
        return Chunk(
            turn=front.number,
            chunk=chunk,
            speech=tuple(part for part, _ in parts),
            begins=begins,
            ends=ends,
            positions=self.positions,
        )

    def _take(self, turn: _Turn, chunk: int) -> list[tuple[SpeakerSpeech, int]]:
        """Each speaker's part of the chunk, with how many of its samples were speech."""
        size = self._spec.samples_per_chunk
        parts = []
        for voice in turn.voices.values():
            if voice.samples >= size or (voice.ended and voice.samples):
                spoken = min(voice.samples, size)
                parts.append((self._part(voice, turn.number, chunk), spoken))
                self._positions[voice.speaker] = voice.position()
        turn.starved = 0 if parts else turn.starved + 1
        if turn.starved >= ceil(_PATIENCE_SECONDS / self._spec.chunk_seconds):
            turn.end()
        return parts

    def _part(self, voice: _Voice, turn: int, chunk: int) -> SpeakerSpeech:
        size, first = self._spec.samples_per_chunk, self._spec.first_sample(chunk)
        speech = Pcm(
            samples=voice.take(size).ljust(2 * size, b"\0"),
            sample_rate=self._spec.sample_rate,
            first_sample=first,
            turn=turn,
            chunk=chunk,
            speaker=voice.speaker,
        )
        ahead = voice.peek(self._spec.lookahead_samples)
        lookahead = replace(speech, samples=ahead, first_sample=first + size)
        return SpeakerSpeech(voice.speaker, Mode.SPEAKING, speech, lookahead)

    def _pop_finished(self) -> tuple[TurnEnd, ...]:
        """Turns that ended without anything left to say."""
        ends = []
        while self._turns and self._turns[0].over:
            turn = self._turns.popleft()
            if turn.begun:
                ends.append(TurnEnd(turn.number, 0))
        return tuple(ends)

    def _voice(self, turn: _Turn, pcm: Pcm, start: int) -> _Voice:
        voice = turn.voices.get(pcm.speaker)
        if voice is None:
            voice = _Voice(pcm.speaker, pcm.sample_rate, self._spec.sample_rate, start=start)
            turn.voices[pcm.speaker] = voice
            # Nothing of it is in a chunk: whoever goes on here begins with a turn of its own.
            nothing = SpeechPosition(pcm.speaker, pcm.sample_rate, start, 0, open=False)
            self._positions.setdefault(pcm.speaker, nothing)
        return voice

    def _check(self, pcm: Pcm, first_sample: int | None) -> None:
        self._check_speaker(pcm.speaker)
        known = self._positions.get(pcm.speaker)
        if known is not None and pcm.sample_rate != known.sample_rate:
            expected = f"{known.sample_rate} Hz, as before"
            raise BadInput("sample_rate", got=f"{pcm.sample_rate} Hz", expected=expected)
        received = self._received.get(pcm.speaker, 0)
        if first_sample is not None and first_sample != received:
            raise BadInput("first_sample", got=first_sample, expected=f"none, or {received}")

    def _check_speaker(self, speaker: int) -> None:
        if speaker >= self._speakers:
            expected = f"0 to {self._speakers - 1}" if self._speakers > 1 else "0"
            raise BadInput("speaker", got=speaker, expected=expected)

    def _reopened(self) -> _Turn:
        """The turn that a resumed session was in the middle of."""
        turn = _Turn(self._turn)
        turn.begun = True
        for position in self._positions.values():
            if position.open:
                rates = (position.sample_rate, self._spec.sample_rate)
                voice = _Voice(position.speaker, *rates, start=position.sample, skip=position.skip)
                turn.voices[position.speaker] = voice
        return turn


class _Turn:
    """One turn's speech that is not in chunks yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.voices: dict[int, _Voice] = {}
        self.begun = False
        self.starved = 0  # chunks in a row for which there was not enough speech

    @property
    def open(self) -> bool:
        return any(not voice.ended for voice in self.voices.values())

    @property
    def over(self) -> bool:
        return all(voice.ended and not voice.samples for voice in self.voices.values())

    def end(self) -> None:
        for voice in self.voices.values():
            voice.end()


class _Voice:
    """One speaker's utterance."""

    def __init__(
        self, speaker: int, source_rate: int, rate: int, *, start: int, skip: int = 0
    ) -> None:
        self.speaker = speaker
        self.ended = False
        self._resampler = Resampler(source_rate, rate)
        self._warm_up = ceil(_WARM_UP_SECONDS * rate)
        self._start = start  # of the utterance, in samples as sent
        self._taken = skip  # samples at the stream's rate that are in chunks
        self._received = 0  # samples as sent
        self._skip = 2 * skip  # bytes still to be left out
        self._buffer = bytearray()

    @property
    def samples(self) -> int:
        """Samples that wait."""
        return len(self._buffer) // 2

    def push(self, pcm: Pcm) -> None:
        self._received += len(pcm)
        self._add(self._resampler.push(pcm))

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self._add(self._resampler.flush())

    def take(self, samples: int) -> bytes:
        taken = bytes(self._buffer[: 2 * samples])
        del self._buffer[: 2 * samples]
        self._taken += len(taken) // 2
        return taken

    def peek(self, samples: int) -> bytes:
        return bytes(self._buffer[: 2 * samples])

    def position(self) -> SpeechPosition:
        rate = self._resampler.source_rate
        if self.ended and not self.samples:
            return SpeechPosition(self.speaker, rate, self._start + self._received, 0, open=False)
        before = self._resampler.source_position(max(0, self._taken - self._warm_up))
        skip = self._taken - self._resampler.target_samples(before)
        return SpeechPosition(self.speaker, rate, self._start + before, max(0, skip), open=True)

    def _add(self, samples: bytes) -> None:
        self._buffer += samples[self._skip :]
        self._skip = max(0, self._skip - len(samples))
