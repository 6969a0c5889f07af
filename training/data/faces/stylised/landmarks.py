"""Where the lips and the face of a stylised head are on the picture, by formula."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.stylised.head import jaw_drop, place
from training.data.faces.stylised.mouth import half_width, lips
from training.data.faces.stylised.traits import Traits
from training.data.faces.truth import LIP_POINTS, LipLines


def lip_lines(t: Traits, e: Expression) -> LipLines:
    """Lips of N faces; traits and expressions are [N, 1]."""
    u = torch.linspace(-1, 1, LIP_POINTS, device=e.open.device)[None]
    shape = lips(u, t, e)
    x = u * half_width(t, e)

    def line(y: Tensor) -> Tensor:
        px, py = place(x, y, t, e)
        return torch.stack([px, py], -1) * 0.5 + 0.5

    return LipLines(
        line(shape.upper_out), line(shape.upper_in), line(shape.lower_in), line(shape.lower_out)
    )


def face_box(t: Traits, e: Expression) -> Tensor:
    """Forehead to chin and cheek to cheek, [N, 4] (left, top, right, bottom)."""
    chin = t["chin"] + jaw_drop(e)
    wide, top = 0.9 * t["width"], -0.62 * t["crown"]
    x = torch.cat([-wide, wide, torch.zeros_like(wide), torch.zeros_like(wide)], 1)
    y = torch.cat([torch.zeros_like(top), torch.zeros_like(top), top, 0.995 * chin], 1)
    px, py = place(x, y, t, e)
    points = torch.stack([px, py], -1) * 0.5 + 0.5
    return torch.cat([points.amin(1), points.amax(1)], -1)
