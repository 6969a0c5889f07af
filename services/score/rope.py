"""Rotary positions in time, rows and columns, as Wan2.1 lays them out.

Under `model.py`: tables are made once per role of a latent frame (anchor, context, own chunk) and
turn queries and keys. Angles are computed in float64, since a table is made once and used for ever.

Legend: B batch, L tokens, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_THETA = 10_000.0


def table(
    head_dim: int, *, frames: Sequence[int], rows: Sequence[int], columns: Sequence[int]
) -> Tensor:
    """Cosines and sines for the tokens of `frames` x `rows` x `columns`: [2, L, 1, D/2] float32.

    These are absolute positions, so a band of a picture or a chunk late in time is a slice.
    """
    parts = [
        _angles(positions, size)
        for positions, size in zip((frames, rows, columns), _split(head_dim), strict=True)
    ]
    f, h, w = len(frames), len(rows), len(columns)
    angles = torch.cat(
        [
            parts[0][:, None, None].expand(f, h, w, -1),
            parts[1][None, :, None].expand(f, h, w, -1),
            parts[2][None, None, :].expand(f, h, w, -1),
        ],
        dim=-1,
    ).reshape(f * h * w, 1, -1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def shift(head_dim: int, frames: int) -> Tensor:
    """The table that moves a key already turned by `frames` latent frames in time.

    Turning is a rotation, so a cached key needs no unturned twin to be read at another position.
    """
    size, rest = _split(head_dim)[0], sum(_split(head_dim)[1:])
    angles = torch.cat(
        [_angles((frames,), size), torch.zeros(1, rest // 2, dtype=torch.float64)], -1
    )
    return torch.stack([angles.cos(), angles.sin()])[:, :, None].float()


def turn(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate neighbouring pairs of `x` [B, L, H, D] by the table's angles; dtype of `x`."""
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = rope
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.flatten(-2).type_as(x)


def _split(head_dim: int) -> tuple[int, int, int]:
    """Numbers of a head that carry time, row and column: 44, 42 and 42 of 128."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def _angles(positions: Sequence[int], size: int) -> Tensor:
    """[positions, size / 2] float64."""
    rates = _THETA ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.tensor(list(positions), dtype=torch.float64)[:, None] * rates
