"""A small batched rasteriser in pure torch: which triangle does each sample of a picture see?

Every triangle lists the samples of its bounding box; the nearest triangle that covers a sample wins
by one scatter of packed (depth, triangle) keys. Small triangles make this cheap, the minimum makes
it independent of order, so any device and any batch give the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_EMPTY = (1 << 62) - 1
_DEPTH_STEPS = 1 << 24


@dataclass(frozen=True, slots=True)
class Hits:
    """What the samples see, for those that see anything: K hits over all N pictures."""

    sample: Tensor  # int64 [K], index into N * size * size
    picture: Tensor  # int64 [K]
    corners: Tensor  # int64 [K, 3], vertices within the picture's own mesh
    triangle: Tensor  # int64 [K]
    weights: Tensor  # float32 [K, 3], barycentric

    def blend(self, values: Tensor) -> Tensor:
        """Values [N, V, C] of vertices, at the hits [K, C]."""
        flat = values.reshape(-1, values.shape[-1])
        row = self.picture * values.shape[1]
        total = self.weights[:, :1] * flat[row + self.corners[:, 0]]
        for k in (1, 2):
            total = total + self.weights[:, k : k + 1] * flat[row + self.corners[:, k]]
        return total


def rasterise(places: Tensor, faces: Tensor, size: int, two_sided: Tensor) -> Hits:
    """Look at meshes of one topology.

    `places` [N, V, 3]: x and y in samples (0..size from the left and the top), z in 0..1, nearer is
    smaller. `faces` int64 [F, 3]; `two_sided` bool [F]: others are seen only when their corners run
    counter-clockwise on the picture.
    """
    pictures = len(places)
    corner = places[:, faces]  # [N, F, 3, 3]
    xy = corner[..., :2]
    low = (xy.amin(2) - 0.5).ceil().clamp(0, size)
    high = (xy.amax(2) - 0.5).floor().clamp(-1, size - 1) + 1
    area = _cross(xy[:, :, 1] - xy[:, :, 0], xy[:, :, 2] - xy[:, :, 0])
    extent = (high - low).clamp(min=0)
    shown = (area < -1e-9) | (two_sided & (area > 1e-9))
    count = (extent[..., 0] * extent[..., 1] * shown).long().reshape(-1)
    drawn = count.nonzero()[:, 0]
    planes = _planes(corner.reshape(-1, 3, 3)[drawn], low.reshape(-1, 2)[drawn])
    wide = extent[..., 0].reshape(-1)[drawn].long()
    count = count[drawn]
    owner = torch.repeat_interleave(torch.arange(len(drawn), device=count.device), count)
    step = torch.arange(len(owner), device=owner.device)
    step -= (count.cumsum(0) - count)[owner]
    down = torch.div(step, wide[owner], rounding_mode="floor")
    right = step - down * wide[owner]
    plane = planes[owner]  # [K, 3, 3]: two weights and the depth, each at (0, 0), by x, by y
    values = plane[..., 0] + plane[..., 1] * right[:, None] + plane[..., 2] * down[:, None]
    inside = ((values[:, :2] >= 0).all(1) & (values[:, 0] + values[:, 1] <= 1)).nonzero()[:, 0]
    owner, values = drawn[owner[inside]], values[inside]
    start = low.reshape(-1, 2)[owner].long()
    x, y = start[:, 0] + right[inside], start[:, 1] + down[inside]
    picture = torch.div(owner, len(faces), rounding_mode="floor")
    sample = (picture * size + y) * size + x
    depth = (values[:, 2].clamp(0, 1) * (_DEPTH_STEPS - 1)).long()
    key = (depth << 36) | torch.arange(len(owner), device=owner.device)
    best = torch.full((pictures * size * size,), _EMPTY, device=owner.device)
    best.scatter_reduce_(0, sample, key, "amin")
    seen = (best != _EMPTY).nonzero()[:, 0]
    winner = best[seen] & ((1 << 36) - 1)
    triangle = owner[winner] - picture[winner] * len(faces)
    weights = values[winner, :2]
    weights = torch.cat([weights, 1 - weights.sum(1, keepdim=True)], 1)
    return Hits(seen, picture[winner], faces[triangle], triangle, weights)


def _planes(corner: Tensor, low: Tensor) -> Tensor:
    """Weights of the first two corners and depth as planes over the box of each triangle.

    For corners [M, 3, 3] and box corners [M, 2]: [M, 3, 3] of values at the box's first sample and
    slopes along x and y. Local coordinates keep small triangles exact.
    """
    local = corner[..., :2] - (low + 0.5)[:, None]
    (ax, ay), (bx, by), (cx, cy) = (point.unbind(1) for point in local.unbind(1))
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    first = torch.stack([bx * cy - by * cx, by - cy, cx - bx], 1) / area[:, None]
    second = torch.stack([cx * ay - cy * ax, cy - ay, ax - cx], 1) / area[:, None]
    z = corner[..., 2]
    depth = first * (z[:, :1] - z[:, 2:]) + second * (z[:, 1:2] - z[:, 2:])
    depth[:, 0] += z[:, 2]
    return torch.stack([first, second, depth], 1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
