"""Numbered clips of talking heads and what they say: what every training script learns from.

    speaker ── speech, mouth controls ──► training.data.faces ──► **footage** ──► vae, latents

A clip is a function of its number and split alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training.data.faces.behaviour import Motion
from training.data.faces.clip import Scene, reference, render
from training.data.faces.draw import between, uniform
from training.data.faces.family import Family
from training.data.faces.split import Split, identity_seed
from training.data.faces.truth import Truth
from training.rows import joined, picked


@dataclass(frozen=True, slots=True)
class Said:
    """What one clip says, and how its mouth moves with it."""

    speech: Tensor  # int16 [samples]: `Geometry.run_in` before the first frame, then the clip
    controls: Tensor  # float32 [T, 6] in the order of `faces.expression.MOUTH`
    speaking: Tensor  # float32 [T], 1 while it talks
    begins: Tensor  # int64 []: before this turn nobody is heard, whatever the speech holds


def is_heard(chunk: Tensor, begins: Tensor) -> Tensor:
    """Whether somebody is heard in a chunk of a clip, counted from its first; broadcasts.

    Who begins with chunk 0 had begun before the clip did.
    """
    return (chunk >= begins) | (begins == 0)


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
    frames_per_chunk: int = 12
    frames_before: int = 24  # heard before the first frame
    turn: int = 12  # frames; who begins to speak does so with a multiple of them
    run_out: int = 8_000  # samples heard after the last frame

    @property
    def chunks(self) -> int:
        return self.frames // self.frames_per_chunk

    @property
    def chunks_before(self) -> int:
        return self.frames_before // self.frames_per_chunk

    @property
    def turns(self) -> int:
        return self.frames // self.turn

    @property
    def run_in(self) -> int:
        """Samples heard before the first frame."""
        return self.frames_before * self.rate // self.fps

    def chunk_of(self, turn: Tensor) -> Tensor:
        """The chunk with which a turn begins; chunks are at most as long."""
        return turn * (self.turn // self.frames_per_chunk)

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
    begins: Tensor  # int64 [B]: before this turn nobody is heard
    truth: Truth

    def __len__(self) -> int:
        return len(self.frames)


class Studio:
    """Makes clips: `make(numbers)` renders those clips of a split."""

    def __init__(
        self,
        speaker: Speaker,
        geometry: Geometry,
        split: Split,
        device: torch.device,
        *,
        human: float = 0.3,
        still: float = 0.35,
        compiled: bool = False,
    ) -> None:
        """Whose clips are made.

        Args:
            human: share of clips that show the human family.
            still: share of clips whose head does not move, so that sync is not drowned by motion.
            compiled: whether to compile the renderer, for whoever draws for many minutes.
        """
        self._speaker, self._geometry, self._split = speaker, geometry, split
        self._device, self._human, self._still = device, human, still
        self._compiled = compiled

    def make(self, numbers: Sequence[int]) -> Footage:
        shown = uniform(torch.tensor(numbers), "family") < self._human
        parts, order = [], list[int]()
        for family, rows in ((Family.STYLISED, ~shown), (Family.HUMAN, shown)):
            places = rows.nonzero()[:, 0].tolist()
            if places:
                parts.append(self._of(family, [numbers[place] for place in places]))
                order += places
        return picked(joined(parts), torch.tensor(order).argsort())

    def _of(self, family: Family, numbers: Sequence[int]) -> Footage:
        said = [self._speaker.say(number) for number in numbers]
        seed = torch.tensor(numbers, dtype=torch.int64)
        still = uniform(seed, "still") < self._still
        scene = Scene(
            family=family,
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
        size, compiled = self._geometry.size, self._compiled
        clip = render(scene, size, self._device, compiled=compiled)
        return Footage(
            frames=clip.frames,
            anchor=reference(scene, size, self._device, compiled=compiled),
            controls=scene.mouth.to(self._device),
            speaking=scene.speaking.to(self._device),
            speech=torch.stack([one.speech for one in said]).to(self._device),
            begins=torch.stack([one.begins for one in said]).to(self._device),
            truth=clip.truth,
        )
