"""Attention over what a pass may see: one kernel, chosen once, and the memory it reads.

Under `model.py`, above `cache.py`. Visibility is decided by what a `Memory` holds, never by a mask:
everything inside is seen densely. `parallel.py` puts another `Attend` in the place of `Local`.

Legend: B batch, L tokens of this pass, M tokens seen in all, H heads, D head size.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Dense attention: q [B, L, H, D], k and v [B, M, H, D] → [B, L, H, D]."""


class KeysValues(NamedTuple):
    """Keys and values of some tokens, [B, tokens, H, D] each unless said otherwise."""

    k: Tensor
    v: Tensor


class Memory(Protocol):
    """What one layer remembers from earlier passes."""

    def extend(self, k: Tensor, v: Tensor) -> KeysValues:
        """Take this pass's keys and values [B, L, H, D]; give all that it may see [B, M, H, D]."""
        ...


class Attend(Protocol):
    """Self-attention of one pass, as a layer sees it."""

    def start(self, x: Tensor) -> Tensor:
        """Hand over q, k or v [B, L, H, D] as soon as it is there; use the result in the call."""
        ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, memory: Memory) -> Tensor:
        """Attend over `memory` extended by k and v: [B, L, H, D], as `q` was before `start`."""
        ...


class Local:
    """All tokens and all heads are here."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def start(self, x: Tensor) -> Tensor:
        return x

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, memory: Memory) -> Tensor:
        seen = memory.extend(k, v)
        return self._kernel(q, seen.k, seen.v)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own kernels."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def attention_for(device: torch.device) -> Kernel:
    """The fastest kernel here: flash-attn on a GPU where it is installed, else PyTorch's."""
    if device.type != "cuda":
        return sdpa
    try:
        flash = importlib.import_module("flash_attn").flash_attn_func
    except ImportError:
        return sdpa
    return cast(Kernel, flash)
