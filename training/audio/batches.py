"""What the speech encoder learns from: log-mel spectra of augmented crops and their mouths.

Legend: B crops, T mel frames, n features, M bands, K controls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.score.frontend.config import MelFrontEnd
from services.score.frontend.logmel import LogMel
from training.data.speech.audio import RATE
from training.data.speech.augment import Channel
from training.data.speech.crops import Clip, CropPlan, SpeechSet
from training.data.speech.mouth import CONTROLS, at_fps
from training.data.speech.split import Train


@dataclass(frozen=True, slots=True)
class BatchConfig:
    crops: int = 16  # per step
    seconds: float = 3.2  # per crop
    pool: int = 640  # crops that a step may draw from
    fresh: int = 1  # new crops per step; the oldest leave the pool
    mask_frames: int = 12  # mel frames hidden at most, in half of the crops
    mask_bands: int = 12  # mel bands hidden at most, in half of the crops


class Batches:
    """Batches by step: the same seed and step give the same batch, whatever came before.

    Making a crop costs more than learning from it, so each is used several times: step s draws
    from crops [s·fresh, s·fresh + pool), and hides other parts of them each time.
    """

    def __init__(
        self,
        speech: SpeechSet[Train],
        front_end: MelFrontEnd,
        config: BatchConfig,
        *,
        seed: int,
    ) -> None:
        assert front_end.controls == CONTROLS
        assert front_end.sample_rate == RATE
        self._speech = speech
        self._mel = LogMel(front_end.mel)
        self._front_end = front_end
        self._config = config
        self._seed = seed
        self._plan = CropPlan(channel=Channel())
        self._pool: dict[int, tuple[Tensor, Tensor]] = {}

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Spectra [B, T, M] and the mouth of every feature [B, n, K]."""
        draw = np.random.default_rng([self._seed, step, 0xBA7C])
        first = step * self._config.fresh
        for left in [crop for crop in self._pool if crop < first]:
            del self._pool[left]
        chosen = first + draw.integers(self._config.pool, size=self._config.crops)
        spectra, mouths = zip(*(self._crop(int(crop)) for crop in chosen), strict=True)
        hidden = [_hidden(spectrum, self._config, draw) for spectrum in spectra]
        return torch.stack(hidden), torch.stack(mouths)

    def _crop(self, number: int) -> tuple[Tensor, Tensor]:
        if number not in self._pool:
            seed = self._seed * 1_000_003 + number
            clip = self._speech.crop(seed, self._config.seconds, self._plan)
            self._pool[number] = spectrum(clip, self._mel), mouths(clip, self._front_end)
        return self._pool[number]


def spectrum(clip: Clip, mel: LogMel) -> Tensor:
    """[T, M] of a clip between silences."""
    history = mel.config.history
    samples = torch.nn.functional.pad(torch.from_numpy(clip.pcm)[None], (history, 0))
    frames: Tensor = mel(samples)[0]
    return frames


def mouths(clip: Clip, front_end: MelFrontEnd) -> Tensor:
    """[n, K], the mouth in the middle of each feature."""
    return torch.from_numpy(at_fps(clip.controls, front_end.sample_rate / front_end.hop))


def _hidden(spectrum: Tensor, config: BatchConfig, draw: np.random.Generator) -> Tensor:
    """A copy of [T, M] with a stretch of time and a range of bands at the floor, perhaps."""
    spectrum = spectrum.clone()
    frames, bands = spectrum.shape
    for size, most, axis in ((frames, config.mask_frames, 0), (bands, config.mask_bands, 1)):
        width, start = int(draw.integers(1, most + 1)), int(draw.integers(size - most))
        if draw.random() < 0.5:
            spectrum.narrow(axis, start, width).fill_(-1.0)
    return spectrum
