"""What is known about a rendered clip without looking at it: lips, boxes, weights.

Places are fractions of the picture: x from its left edge, y from its top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LIP_POINTS = 9  # along each edge of a lip, from corner to corner


@dataclass(frozen=True, slots=True)
class LipLines:
    """The edges of the lips [N, LIP_POINTS, 2], from the picture's left corner to its right."""

    upper_out: Tensor
    upper_in: Tensor
    lower_in: Tensor
    lower_out: Tensor

    def by_clip(self, batch: int) -> LipLines:
        """[B * T, K, 2] to [B, T, K, 2]."""
        lines = (self.upper_out, self.upper_in, self.lower_in, self.lower_out)
        return LipLines(*(line.reshape(batch, -1, *line.shape[1:]) for line in lines))


@dataclass(frozen=True, slots=True)
class Truth:
    """Geometry of a clip's face; boxes are (left, top, right, bottom)."""

    opening: Tensor  # [B, T], gap between the lips in the middle, fraction of the height; 0 closed
    width: Tensor  # [B, T], corner to corner
    lips: LipLines  # [B, T, K, 2] each
    mouth_box: Tensor  # [B, T, 4], the lips with a margin
    face_box: Tensor  # [B, 4], within which the face stays during the clip

    @classmethod
    def of(cls, lips: LipLines, face_box: Tensor) -> Truth:
        """Measure lines [B, T, K, 2]; `face_box` [B, T, 4] is per frame."""
        middle = LIP_POINTS // 2
        gap = lips.lower_in[..., middle, :] - lips.upper_in[..., middle, :]
        ends = lips.upper_in[..., -1, :] - lips.upper_in[..., 0, :]
        points = torch.cat([lips.upper_out, lips.lower_out], -2)
        low, high = points.amin(-2), points.amax(-2)
        margin = 0.12 * (high[..., :1] - low[..., :1])
        box = torch.cat([low - margin, high + margin], -1).clamp(0, 1)
        face = torch.cat([face_box[..., :2].amin(1), face_box[..., 2:].amax(1)], -1)
        return cls(
            opening=gap.norm(dim=-1) * (gap[..., 1] > 0),
            width=ends.norm(dim=-1),
            lips=lips,
            mouth_box=box,
            face_box=face.clamp(0, 1),
        )


def mouth_weights(truth: Truth, size: int, weight: float) -> Tensor:
    """How much each pixel matters, [B, T, size, size]: 1 far from the mouth, `weight` on it.

    Falls off smoothly over half the mouth's size beyond its box.
    """
    line = (torch.arange(size, device=truth.mouth_box.device) + 0.5) / size
    left, top, right, bottom = truth.mouth_box[..., None, None].unbind(-3)
    x, y = line[None, :], line[:, None]
    out_x = (torch.maximum(left - x, x - right) / (0.5 * (right - left))).clamp(min=0)
    out_y = (torch.maximum(top - y, y - bottom) / (0.5 * (bottom - top))).clamp(min=0)
    return 1 + (weight - 1) * torch.exp(-4 * (out_x**2 + out_y**2))
