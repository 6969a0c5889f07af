"""Clips' speech from the corpus: whole crops, turns that begin in the middle, silence.

speech corpus → **speaker** → footage. Training clips hear augmented speech of training voices on
training lines; whoever judges hears the other split, clean.
"""

from __future__ import annotations

from typing import Generic

import numpy as np
import torch

from training.data.speech.augment import Channel
from training.data.speech.crops import CropPlan, SpeechSet
from training.data.speech.mouth import REST, at_moments
from training.data.speech.split import Use
from training.footage import Geometry, Said

_TURNS = 0.2
_EASE = 3  # video frames from rest into speech


class CorpusSpeaker(Generic[Use]):
    """A `Speaker` who reads crops of a set."""

    def __init__(
        self, speech: SpeechSet[Use], geometry: Geometry, plan: CropPlan, *, turns: float = _TURNS
    ) -> None:
        """`turns` is the share of clips in which a listener begins to speak."""
        self._speech: SpeechSet[Use] = speech
        self._geometry, self._plan, self._turns = geometry, plan, turns

    def say(self, number: int) -> Said:
        geometry, draw = self._geometry, np.random.default_rng([number, 0x5A1D])
        crop = self._speech.crop(number, geometry.samples / geometry.rate, self._plan)
        moments = (np.arange(geometry.frames) + 0.5) / geometry.fps
        controls = at_moments(crop.controls, moments + geometry.run_in / geometry.rate)
        begins = self._begins(draw, talks=bool(crop.controls[:, 0].max() > 0.05))
        frame = np.arange(geometry.frames)
        share = ((frame - begins * geometry.turn) / _EASE).clip(0, 1)[:, None]
        pcm = (crop.pcm * 32767).astype(np.int16)
        if begins:
            # Who listens is silent to the model: serving hears nothing of such turns.
            pcm[: geometry.run_in + begins * geometry.turn * geometry.rate // geometry.fps] = 0
        return Said(
            speech=torch.from_numpy(pcm),
            controls=torch.from_numpy((REST + share * (controls - REST)).astype(np.float32)),
            speaking=torch.from_numpy((share[:, 0] > 0).astype(np.float32)),
            begins=torch.tensor(begins),
        )

    def _begins(self, draw: np.random.Generator, *, talks: bool) -> int:
        """The turn with which speech begins: 0 if it had begun before, all if it never does."""
        turn, first, listens = draw.random(), draw.integers(1, self._geometry.turns), draw.random()
        if not talks:
            # Silence is also heard: a speaker pauses, and rooms have noise.
            return self._geometry.turns if listens < 0.5 else 0
        return int(first) if turn < self._turns else 0


def training_plan() -> CropPlan:
    """Rooms, microphones, codecs, other paces; some silence."""
    return CropPlan(channel=Channel(), silence=0.14)


def test_plan() -> CropPlan:
    """Speech as it was recorded, and always some."""
    return CropPlan(silence=0.0, stretched=0.0)
