"""Draw numbers from a seed, the same on every device and in every order.

Counter-based: a number is a hash of (seed, stream, cell), so any identity or moment of a motion can
be drawn again without drawing what comes before it.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MASK = 0x7FFFFFFF


def stream(name: str) -> int:
    """A number for a name, so that adding a trait does not change the draws of others."""
    return zlib.crc32(name.encode()) & _MASK


def uniform(seed: Tensor, name: str, cell: Tensor | int = 0) -> Tensor:
    """float32 in [0, 1) for int64 `seed` broadcast with `cell` (which of many draws)."""
    word = seed * 0x9E3779B1 + stream(name)
    word = _mixed(word & 0xFFFFFFFF)
    word = _mixed((word + _cell(cell) * 0x85EBCA77) & 0xFFFFFFFF)
    return (word >> 8).to(torch.float32) * (1.0 / (1 << 24))


def between(seed: Tensor, name: str, low: float, high: float) -> Tensor:
    """float32 in [low, high), shaped like `seed`."""
    return low + (high - low) * uniform(seed, name)


def _cell(cell: Tensor | int) -> Tensor:
    return torch.as_tensor(cell).to(torch.int64) & 0xFFFFFFFF


def _mixed(word: Tensor) -> Tensor:
    """One round of a 32-bit finaliser (the constants are those of lowbias32, public domain)."""
    word = word ^ (word >> 16)
    word = (word * 0x21F0AAAD) & 0xFFFFFFFF
    word = word ^ (word >> 15)
    word = (word * 0x735A2D97) & 0xFFFFFFFF
    return word ^ (word >> 15)
