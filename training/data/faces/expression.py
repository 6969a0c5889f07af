"""What a face does at one moment: the six mouth controls and the rest of the head.

Every field is a float32 tensor of one shape, [B, T] for clips or [N] for loose frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

MOUTH = ("open", "spread", "round", "press", "teeth", "tongue")


@dataclass(frozen=True, slots=True)
class Expression:
    """Mouth controls and smile, blink in 0..1; brow and gaze in -1..1; angles in radians."""

    open: Tensor
    spread: Tensor
    round: Tensor
    press: Tensor
    teeth: Tensor
    tongue: Tensor
    smile: Tensor
    blink: Tensor
    gaze_x: Tensor
    gaze_y: Tensor  # down is positive
    brow: Tensor  # up is positive
    yaw: Tensor  # positive turns the face to the picture's right
    pitch: Tensor  # positive nods down
    roll: Tensor
    shift_x: Tensor  # half frames
    shift_y: Tensor
    zoom: Tensor  # factor, 1 is as the identity stands
    breath: Tensor  # -1..1

    @classmethod
    def still(cls, *shape: int) -> Expression:
        """A head at rest: lips closed, eyes open, looking at the camera."""
        rest = {field.name: torch.zeros(shape) for field in fields(cls)}
        rest["zoom"] = torch.ones(shape)
        return cls(**rest)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Expression:
        """The same moment with `fn` applied to every field."""
        return Expression(**{field.name: fn(getattr(self, field.name)) for field in fields(self)})
