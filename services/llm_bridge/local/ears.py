"""When the user begins, pauses and is done: voice activity made into utterances.

On the path: user's voice → **ears** → recogniser. Knows sound at 16 kHz and a judge of voice, and
no clock but the sound's own. With push-to-talk the client says when the utterance is done; voice
activity then only tells whether there was any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

RATE = 16_000  # Hz
FRAME_SAMPLES = 512  # that the judge looks at together
_FRAME_BYTES = 2 * FRAME_SAMPLES
FRAME_SECONDS = FRAME_SAMPLES / RATE

_VOICE = 0.5  # probability from which a frame is voice
_SILENCE = 0.35  # below which voice that goes on has stopped
_BEGIN_FRAMES = 3  # of voice in a row that begin an utterance
_PAUSE_SECONDS = 0.2  # of silence that are a pause
_BEFORE_SECONDS = 0.3  # of sound kept from before the first voice: soft beginnings of words
_AFTER_SECONDS = 0.12  # after the last voice, for soft ends
_LONGEST_SECONDS = 25.0  # that a recogniser is given together

JudgeOfVoice = Callable[[bytes], float]  # a frame's probability of being voice; keeps its history


@dataclass(frozen=True, slots=True)
class Began:
    """Voice, at first or after a pause."""

    at: float


@dataclass(frozen=True, slots=True)
class Paused:
    """Silence for a moment; `sound` is the utterance so far."""

    at: float
    sound: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Filled:
    """The utterance is long: its first part, to be recognised by itself."""

    sound: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Done:
    """The utterance is over; `sound` is what came since the last part."""

    start: float
    end: float
    voiced: float  # seconds
    sound: bytes = field(repr=False)


Ear = Began | Paused | Filled | Done


class Ears:
    """One user's utterances.

    Args:
        judge: of this user's voice alone.
        end_silence: seconds of silence after which the utterance is over.
        push_to_talk: it is over when `release` says so.
    """

    def __init__(self, judge: JudgeOfVoice, *, end_silence: float, push_to_talk: bool) -> None:
        self._judge = judge
        self._end_silence = max(end_silence, FRAME_SECONDS)
        self._push_to_talk = push_to_talk
        self._waiting = bytearray()  # less than a frame
        self._sound = bytearray()  # of the utterance, or of the moment before one
        self._frames = 0  # heard in all
        self._run = 0  # frames of voice in a row
        self._silent = 0  # frames since the last voice
        self._voiced = 0  # frames of voice in this utterance
        self._start = 0.0  # of this utterance
        self._open = False
        self._paused = False

    @property
    def now(self) -> float:
        """Seconds of sound heard."""
        return self._frames * FRAME_SECONDS

    def push(self, samples: bytes) -> Iterator[Ear]:
        """The next 16-bit samples, any number of them."""
        self._waiting += samples
        while len(self._waiting) >= _FRAME_BYTES:
            frame = bytes(self._waiting[:_FRAME_BYTES])
            del self._waiting[:_FRAME_BYTES]
            yield from self._frame(frame)

    def release(self) -> Done:
        """The user says that the utterance is over."""
        if not self._open:
            self._start = self.now
        return self._done()

    def _frame(self, frame: bytes) -> Iterator[Ear]:
        voice = self._judge(frame) >= (_SILENCE if self._run else _VOICE)
        self._frames += 1
        self._sound += frame
        self._run = self._run + 1 if voice else 0
        self._silent = 0 if voice else self._silent + 1
        if not self._open:
            yield from self._outside()
        else:
            self._voiced += voice
            yield from self._inside()
        if len(self._sound) >= 2 * RATE * _LONGEST_SECONDS:
            yield Filled(self._taken())

    def _outside(self) -> Iterator[Ear]:
        if self._run >= _BEGIN_FRAMES:
            self._open, self._paused = True, False
            self._voiced = self._run
            self._start = self.now - self._run * FRAME_SECONDS
            if not self._push_to_talk:
                yield Began(self._start)
        else:
            before = _whole(_BEFORE_SECONDS) + self._run * _FRAME_BYTES
            del self._sound[:-before]

    def _inside(self) -> Iterator[Ear]:
        if self._push_to_talk:
            return
        silence = self._silent * FRAME_SECONDS
        if silence >= self._end_silence:
            yield self._done()
        elif not self._paused and silence >= _PAUSE_SECONDS:
            self._paused = True
            yield Paused(self.now - silence, self._spoken())
        elif self._paused and self._run >= _BEGIN_FRAMES - 1:
            self._paused = False
            yield Began(self.now - self._run * FRAME_SECONDS)

    def _done(self) -> Done:
        end = self.now - self._silent * FRAME_SECONDS
        done = Done(
            start=self._start,
            end=max(self._start, end),
            voiced=self._voiced * FRAME_SECONDS,
            sound=self._spoken() if self._open else b"",
        )
        self._open = self._paused = False
        self._voiced = self._run = 0
        self._sound.clear()
        return done

    def _spoken(self) -> bytes:
        """The utterance so far, without the silence after it."""
        silence = self._silent * _FRAME_BYTES - _whole(_AFTER_SECONDS)
        return bytes(self._sound[: len(self._sound) - max(0, silence)])

    def _taken(self) -> bytes:
        taken = bytes(self._sound)
        self._sound.clear()
        return taken


def _whole(seconds: float) -> int:
    """Bytes of so much sound, rounded to frames."""
    return round(seconds / FRAME_SECONDS) * _FRAME_BYTES
