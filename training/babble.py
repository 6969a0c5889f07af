"""A speaker without sound: mouths that move like speech, for what learns from pictures alone."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.faces.draw import uniform
from training.data.faces.expression import MOUTH
from training.footage import Geometry, Said

# Extremes of speech in the order of `MOUTH`; every phone lies between some of them.
_SHAPES = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.1, 0.0, 0.0],  # rest
        [0.0, 0.0, 0.1, 1.0, 0.0, 0.0],  # p, b, m
        [1.0, 0.1, 0.0, 0.0, 0.4, 0.0],  # ah
        [0.8, 0.5, 0.0, 0.0, 0.5, 0.0],  # ae
        [0.25, 1.0, 0.0, 0.0, 0.8, 0.0],  # ee
        [0.2, 0.0, 1.0, 0.0, 0.0, 0.0],  # oo
        [0.75, 0.0, 0.6, 0.0, 0.1, 0.0],  # aw
        [0.1, 0.15, 0.0, 0.25, 1.0, 0.0],  # f, v
        [0.3, 0.2, 0.0, 0.0, 0.6, 1.0],  # th, l
        [0.15, 0.5, 0.0, 0.0, 1.0, 0.1],  # s
    ]
)
_SHAPE_SECONDS = 0.09  # from one shape to the next
_SILENT = 0.1  # share of clips that say nothing


class Babble:
    """A `Speaker` of random shapes, with an ease from each to the next."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    def say(self, number: int) -> Said:
        seed = torch.tensor(number)
        seconds = torch.arange(self._geometry.frames) / self._geometry.fps
        place = seconds / _SHAPE_SECONDS
        here, between = place.long(), (place % 1)[:, None]
        ease = between.square() * (3 - 2 * between)
        controls = torch.lerp(_shape(seed, here), _shape(seed, here + 1), ease)
        talks = (uniform(seed, "talks") >= _SILENT).float()
        rest = _SHAPES[0].expand(len(controls), len(MOUTH))
        return Said(
            speech=torch.zeros(self._geometry.samples, dtype=torch.int16),
            controls=torch.lerp(rest, controls, talks),
            speaking=talks.expand(len(controls)),
            begins=torch.tensor(0 if talks else self._geometry.turns),
        )


def _shape(seed: Tensor, cell: Tensor) -> Tensor:
    """The shape in each cell of time, [T, 6]: one of the extremes, more or less of it."""
    which = (uniform(seed, "shape", cell) * len(_SHAPES)).long()
    strength = 0.5 + 0.5 * uniform(seed, "strength", cell)
    return _SHAPES[which] * strength[:, None]
