"""Keep of the hair only what can be seen.

A head of hair is mostly inside itself. Seen small from the poses that heads take, the triangles
that show anywhere are a small part; the rest is dropped once per identity, not per frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.human.act import act
from training.data.faces.human.raster import rasterise
from training.data.faces.human.template import template

KEPT = 9000  # triangles of hair per identity
_SIZE = 160  # samples across, enough to find what shows
_POSES = ((0.0, 0.0), (-0.30, 0.0), (0.30, 0.0), (-0.16, 0.13), (0.16, -0.13), (0.0, 0.14))


def seen_triangles(neutral: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """For heads [N, V, 3] with hair [N, H, 3] of `faces` [F, 3]: int64 [N, KEPT] triangles.

    Sorted by how much they show; the least of them may not show at all.
    """
    return torch.stack(
        [_seen(head[None], hair[None], faces) for head, hair in zip(neutral, vertices, strict=True)]
    )


def _seen(head: Tensor, hair: Tensor, faces: Tensor) -> Tensor:
    skin = template().head.faces
    both = torch.cat([skin, faces + head.shape[1]])
    two_sided = torch.arange(len(both)) >= len(skin)
    yaw, pitch = torch.tensor(_POSES).unbind(1)
    still = Expression.still(1)
    shown = torch.zeros(len(both))
    for k in range(len(_POSES)):
        still.yaw[:], still.pitch[:] = yaw[k], pitch[k]
        places = act(head, hair, still).places * torch.tensor([_SIZE, _SIZE, 1])
        hits = rasterise(places, both, _SIZE, two_sided)
        shown += torch.bincount(hits.triangle, minlength=len(both))
    return shown[len(skin) :].topk(KEPT).indices
