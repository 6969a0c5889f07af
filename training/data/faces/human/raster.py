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
    a, b, c = xy.unbind(2)
    area = (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1])
    area = area - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
    low = (xy.amin(2) - 0.5).ceil().clamp(0, size).long()
    high = (xy.amax(2) - 0.5).floor().clamp(-1, size - 1).long() + 1
    extent = (high - low).clamp(min=0)
    count = extent[..., 0] * extent[..., 1]
    count = count * ((area < -1e-9) | (two_sided & (area > 1e-9)))
    which = count.reshape(-1).nonzero()[:, 0]
    count = count.reshape(-1)[which]
    owner = torch.repeat_interleave(which, count)
    first = torch.repeat_interleave(count.cumsum(0) - count, count)
    step = torch.arange(len(owner), device=owner.device) - first
    wide = extent[..., 0].reshape(-1)[owner]
    x = low[..., 0].reshape(-1)[owner] + step % wide
    y = low[..., 1].reshape(-1)[owner] + step // wide
    weights = _weights(x, y, xy.reshape(-1, 3, 2)[owner], area.reshape(-1)[owner])
    inside = (weights >= 0).all(1)
    owner, x, y, weights = owner[inside], x[inside], y[inside], weights[inside]
    depth = (weights * corner[..., 2].reshape(-1, 3)[owner]).sum(1).clamp(0, 1)
    picture = owner // len(faces)
    sample = (picture * size + y) * size + x
    key = ((depth * (_DEPTH_STEPS - 1)).long() << 36) | torch.arange(
        len(owner), device=owner.device
    )
    best = torch.full((pictures * size * size,), _EMPTY, device=owner.device)
    best.scatter_reduce_(0, sample, key, "amin")
    seen = (best != _EMPTY).nonzero()[:, 0]
    winner = best[seen] & ((1 << 36) - 1)
    triangle = owner[winner] % len(faces)
    return Hits(seen, picture[winner], faces[triangle], triangle, weights[winner])


def _weights(x: Tensor, y: Tensor, xy: Tensor, area: Tensor) -> Tensor:
    """Barycentric coordinates [K, 3] of samples at (x + 0.5, y + 0.5) in triangles [K, 3, 2]."""
    px, py = x + 0.5, y + 0.5
    ax, ay = xy[:, :, 0], xy[:, :, 1]
    opposite = []
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        cross = (ax[:, j] - ax[:, i]) * (py - ay[:, i]) - (ay[:, j] - ay[:, i]) * (px - ax[:, i])
        opposite.append(cross / area)
    return torch.stack(opposite, 1)
