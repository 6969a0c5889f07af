"""Speech as a training loop reads it: crops by seed, with the controls that belong to them.

`SpeechSet[Train]` and `SpeechSet[Test]` are different types: what trains asks for the first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.data.speech.audio import RATE, Pcm, resampled
from training.data.speech.augment import Channel
from training.data.speech.corpus import Corpus, Utterance
from training.data.speech.mouth import CONTROLS, REST, Controls, at_moments, mouth
from training.data.speech.phones import FRAMES_PER_SECOND
from training.data.speech.split import Use

_HOP = RATE // FRAMES_PER_SECOND


@dataclass(frozen=True, slots=True)
class Clip:
    """Sound and the mouth that makes it, over the same time."""

    pcm: Pcm  # 16 kHz
    controls: Controls  # [T, 6] at 100 Hz, T = whole 10 ms of `pcm`


@dataclass(frozen=True, slots=True)
class CropPlan:
    """What a crop of several seconds is put together from."""

    channel: Channel | None = None  # none: as it was recorded
    silence: float = 0.08  # share of crops in which nobody speaks
    pause: float = 0.7  # seconds between utterances at most
    stretch: float = 0.12  # faster and higher, or slower and deeper, by at most this share
    stretched: float = 0.5  # share of crops that are


class SpeechSet(Generic[Use]):
    """Utterances of one split, decoded once when first wanted and kept as 16-bit samples."""

    def __init__(self, corpus: Corpus, use: type[Use], utterances: list[Utterance]) -> None:
        """
        Raises:
            ValueError: an utterance of the other split, or none at all.
        """
        strangers = [item for item in utterances if item.split is not use.split]
        if strangers:
            stranger = strangers[0]
            raise ValueError(
                f"{stranger.voice} {stranger.line} is for {stranger.split}, not for {use.split}"
            )
        if not utterances:
            raise ValueError(f"no utterance for {use.split}")
        self.utterances = utterances
        self._corpus = corpus
        self._kept: dict[tuple[str, str], tuple[NDArray[np.int16], Controls]] = {}
        by_voice: defaultdict[str, list[Utterance]] = defaultdict(list)
        for utterance in utterances:
            by_voice[utterance.voice].append(utterance)
        self._voices = dict(by_voice)

    @classmethod
    def of(cls, corpus: Corpus, use: type[Use], voices: Collection[str] | None = None) -> Self:
        """Everything in `corpus` that may be used so, or what some voices say of it.

        Raises:
            ValueError: nothing is left.
        """
        fitting = [item for item in corpus.utterances if item.split is use.split]
        if voices is not None:
            fitting = [item for item in fitting if item.voice in voices]
        return cls(corpus, use, fitting)

    @property
    def seconds(self) -> float:
        return sum(utterance.seconds for utterance in self.utterances)

    @property
    def voices(self) -> list[str]:
        return list(self._voices)

    def of_voice(self, voice: str) -> list[Clip]:
        """Every utterance of one voice, clean."""
        return [self.clip(utterance) for utterance in self._voices[voice]]

    def clip(self, utterance: Utterance) -> Clip:
        """One utterance, clean."""
        key = utterance.voice, utterance.line
        if key not in self._kept:
            pcm = self._corpus.sound(utterance)
            controls = mouth(utterance.track, pcm)
            self._kept[key] = (pcm * 32768).clip(-32768, 32767).astype(np.int16), controls
        samples, controls = self._kept[key]
        return Clip(samples.astype(np.float32) * np.float32(1 / 32768), controls)

    def crop(self, seed: int, seconds: float, plan: CropPlan) -> Clip:
        """`seconds` of one voice, a whole number of 10 ms; the same seed gives the same crop.

        Every voice is as likely as every other, whatever it has said.
        """
        draw = np.random.default_rng([seed, 0x5EEC])
        shape, source, channel = draw.spawn(3)
        frames = round(seconds * FRAMES_PER_SECOND)
        ratio = _stretch(plan, shape)
        if shape.random() < plan.silence:
            speech = _nothing(frames)
        else:
            speech = _stretched(self._spoken(int(frames * ratio) + 2, plan, source), ratio, frames)
        if plan.channel is None:
            return speech
        return Clip(plan.channel.carry(speech.pcm, channel), speech.controls)

    def _spoken(self, frames: int, plan: CropPlan, draw: Generator) -> Clip:
        """Utterances of one voice with pauses, entered in the middle of the first."""
        voice = self._voices[self.voices[draw.integers(len(self._voices))]]
        clip = _nothing(frames)
        # Crops may also begin with up to a second of silence: mouths must start, not only go on.
        place = -int(draw.integers(-FRAMES_PER_SECOND, 3 * FRAMES_PER_SECOND))
        while place < frames:
            said = self.clip(voice[draw.integers(len(voice))])
            _lay(said, clip, place)
            place += len(said.controls) + int(draw.random() ** 2 * plan.pause * FRAMES_PER_SECOND)
        return clip


def _nothing(frames: int) -> Clip:
    return Clip(np.zeros(frames * _HOP, np.float32), np.tile(REST, (frames, 1)))


def _lay(said: Clip, clip: Clip, place: int) -> None:
    """Write `said` into `clip` from frame `place` on, as far as both reach."""
    first, last = max(0, -place), min(len(said.controls), len(clip.controls) - place)
    if first >= last:
        return
    clip.controls[place + first : place + last] = said.controls[first:last]
    sound = said.pcm[first * _HOP : last * _HOP]
    clip.pcm[(place + first) * _HOP : (place + first) * _HOP + len(sound)] = sound


def _stretch(plan: CropPlan, draw: Generator) -> float:
    """How much faster the crop is than it was said."""
    happens, share = draw.random() < plan.stretched, draw.uniform(-1, 1)
    return 1 + plan.stretch * share if happens else 1.0


def _stretched(clip: Clip, ratio: float, frames: int) -> Clip:
    """The first `frames` of `clip` played `ratio` times faster, sound and mouth alike."""
    pcm = resampled(clip.pcm, 1 / ratio)[: frames * _HOP]
    moments = (np.arange(frames) + 0.5) / FRAMES_PER_SECOND * ratio
    controls = clip.controls[:frames] if ratio == 1 else at_moments(clip.controls, moments)
    assert controls.shape == (frames, len(CONTROLS))
    return Clip(np.pad(pcm, (0, frames * _HOP - len(pcm))), controls)
