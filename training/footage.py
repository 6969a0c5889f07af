"""Numbered clips of talking heads and what they say: what every training script learns from.

    speaker ── speech, mouth controls ──► training.data.faces ──► **footage** ──► vae, latents

A clip is a function of its number and split alone. Rendering costs more than learning on a small
machine, so there they are kept on a `Shelf`.

    python -m training.footage --clips 900 --out DIR      fills a shelf, or goes on filling it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.data.faces.behaviour import Motion
from training.data.faces.clip import Scene, reference, render
from training.data.faces.draw import between, uniform
from training.data.faces.family import Family
from training.data.faces.split import Split, identity_seed
from training.data.faces.truth import Truth
from training.rows import joined, packed, unpacked

_STILL = 0.35  # share of clips whose head does not move, so that sync is not drowned by motion


@dataclass(frozen=True, slots=True)
class Said:
    """What one clip says, and how its mouth moves with it."""

    speech: Tensor  # int16 [samples]: `Geometry.run_in` before the first frame, then the clip
    controls: Tensor  # float32 [T, 6] in the order of `faces.expression.MOUTH`
    speaking: Tensor  # float32 [T], 1 while it talks


class Speaker(Protocol):
    """Gives clips their speech."""

    def say(self, number: int) -> Said:
        """The speech of clip `number`: always the same."""
        ...


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a clip in time and space."""

    frames: int = 48  # at 25 per second: four chunks of twelve
    size: int = 256  # pixels per side
    fps: int = 25
    rate: int = 16_000  # Hz
    run_in: int = 16_000  # samples of speech before the first frame
    run_out: int = 8_000  # and after the last one

    @property
    def samples(self) -> int:
        return self.run_in + self.frames * self.rate // self.fps + self.run_out


@dataclass(frozen=True, slots=True)
class Footage:
    """B clips of T frames."""

    frames: Tensor  # uint8 [B, T, 3, H, W]
    anchor: Tensor  # uint8 [B, 3, H, W], the same character at another moment
    controls: Tensor  # float32 [B, T, 6]
    speaking: Tensor  # float32 [B, T]
    speech: Tensor  # int16 [B, samples]
    truth: Truth

    def __len__(self) -> int:
        return len(self.frames)


class Studio:
    """Makes clips: `make(numbers)` renders those clips of a split."""

    def __init__(
        self, speaker: Speaker, geometry: Geometry, split: Split, device: torch.device
    ) -> None:
        self._speaker, self._geometry, self._split = speaker, geometry, split
        self._device = device

    def make(self, numbers: Sequence[int]) -> Footage:
        said = [self._speaker.say(number) for number in numbers]
        seed = torch.tensor(numbers, dtype=torch.int64)
        still = uniform(seed, "still") < _STILL
        scene = Scene(
            family=Family.STYLISED,
            identity=identity_seed(self._split, seed),
            motion=Motion(
                seed=seed,
                liveliness=torch.where(still, 0.0, between(seed, "liveliness", 0.3, 1.0)),
                start=between(seed, "start", 0.0, 600.0),
                fps=self._geometry.fps,
            ),
            mouth=torch.stack([one.controls for one in said]),
            speaking=torch.stack([one.speaking for one in said]),
        )
        clip = render(scene, self._geometry.size, self._device)
        return Footage(
            frames=clip.frames,
            anchor=reference(scene, self._geometry.size, self._device),
            controls=scene.mouth.to(self._device),
            speaking=scene.speaking.to(self._device),
            speech=torch.stack([one.speech for one in said]).to(self._device),
            truth=clip.truth,
        )


class Shelf:
    """Clips kept on disk, one file each; what is not there yet is made and put there."""

    def __init__(self, make: Callable[[Sequence[int]], Footage], directory: Path) -> None:
        self._make, self._directory = make, directory
        directory.mkdir(parents=True, exist_ok=True)

    def make(self, numbers: Sequence[int]) -> Footage:
        return joined([self._one(number) for number in numbers])

    def fill(self, numbers: Sequence[int]) -> None:
        """Make what is missing."""
        for number in numbers:
            if not self._path(number).exists():
                self._one(number)

    def _one(self, number: int) -> Footage:
        path = self._path(number)
        if path.exists():
            return unpacked(Footage, load_file(path))
        footage = self._make([number])
        unfinished = path.with_suffix(".part")
        save_file({name: x.contiguous() for name, x in packed(footage).items()}, unfinished)
        unfinished.replace(path)
        return footage

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}.safetensors"
