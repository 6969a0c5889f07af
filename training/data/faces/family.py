"""The families of characters, and what a renderer of one can do."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.truth import LipLines

Traits = dict[str, Tensor]  # per identity, first dimension N


class Family(Enum):
    """Which kind of character."""

    STYLISED = "stylised"
    HUMAN = "human"


class Renderer(Protocol):
    """Draws one family. Everything is a function of its arguments."""

    def traits(self, seed: Tensor) -> Traits:
        """Who the identities `seed` (int64 [N]) are; tensors on the CPU, [N, ...] each."""
        ...

    def draw(self, traits: Traits, expression: Expression, size: int) -> Tensor:
        """Pictures [N, 3, size, size] float32 in 0..1; expression's fields are [N]."""
        ...

    def landmarks(self, traits: Traits, expression: Expression) -> tuple[LipLines, Tensor]:
        """Lips, and the face's box [N, 4] (left, top, right, bottom), in fractions."""
        ...

    def frames_at_once(self, device: torch.device) -> int:
        """How many frames to draw together: few stay in a CPU's cache, many fill a GPU."""
        ...


def renderer(family: Family) -> Renderer:
    match family:
        case Family.STYLISED:
            from training.data.faces.stylised.render import Stylised

            return Stylised()
        case Family.HUMAN:
            from training.data.faces.human.render import Human

            return Human()
