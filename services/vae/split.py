"""Divide the big pictures of a decoder over devices, by rows, when one device is not enough.

Wraps a decoder from outside: every rank runs the same calls on the same latents and keeps its own
rows of the state. What works at latent size (for Wan2.1 a twentieth of the arithmetic, and the
attention, which sees whole frames) every rank does by itself; from the first stage on each holds
its share of the rows and asks its neighbours for the one row beyond each edge that a 3 x 3
convolution needs. Tested over gloo; not yet run on GPUs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from services.vae.layers import CausalConv, DoublingConv
from services.vae.model import Vae
from services.vae.state import State


def split_rows(vae: Vae, group: dist.ProcessGroup) -> None:
    """Make `vae` decode its rank's share of the rows and put frames together on every rank.

    Latent rows must be a multiple of the number of ranks.

    Raises:
        ValueError: the VAE normalises over whole frames (group norm), which rows alone cannot.
    """
    if vae.config.norm_groups:
        raise ValueError("norm_groups: expected 0 (RMS norm) for a decoder that is split by rows")
    rows = _Rows(group)
    vae.decoder.middle["2"].register_forward_hook(lambda *hook: rows.share(hook[-1]))
    for layer in (*vae.decoder.upsamples, vae.decoder.head):
        for module in layer.modules():
            if isinstance(module, CausalConv | DoublingConv) and module.kernel_size[-1] == 3:
                _widen(module, rows)
    vae.decoder.register_forward_hook(lambda *hook: rows.gather(hook[-1]))


def _widen(conv: nn.Conv2d | nn.Conv3d, rows: _Rows) -> None:
    """Feed `conv` the neighbours' rows, and zeros only beyond the edges of the picture."""
    padding = cast(tuple[int, ...], conv.padding)
    conv.padding = cast(Any, (*padding[:-2], 0, padding[-1]))
    conv.register_forward_pre_hook(lambda _, inputs: (rows.widened(inputs[0]), *inputs[1:]))


class _Rows:
    """One rank's place in the picture. Rows are the last axis but one."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._rank = dist.get_rank(group)
        self._ranks = dist.get_world_size(group)

    def share(self, x: Tensor) -> Tensor:
        height = x.shape[-2]
        if height % self._ranks:
            raise ValueError(f"rows: expected a multiple of {self._ranks}, got {height}")
        own = height // self._ranks
        return x[..., self._rank * own : (self._rank + 1) * own, :]

    def widened(self, x: Tensor) -> Tensor:
        """`x` with one more row above and below."""
        above, below = torch.zeros_like(x[..., :1, :]), torch.zeros_like(x[..., :1, :])
        above, below = above.contiguous(), below.contiguous()
        swaps = []
        if self._rank > 0:
            swaps += self._swap(x[..., :1, :], above, self._rank - 1)
        if self._rank + 1 < self._ranks:
            swaps += self._swap(x[..., -1:, :], below, self._rank + 1)
        for work in dist.batch_isend_irecv(swaps) if swaps else []:
            work.wait()
        # Along [..., H, W, C], as frames lie in memory.
        pieces = [piece.movedim(1, -1) for piece in (above, x, below)]
        return torch.cat(pieces, dim=-3).movedim(-1, 1)

    def _swap(self, mine: Tensor, theirs: Tensor, neighbour: int) -> list[dist.P2POp]:
        peer = dist.get_global_rank(self._group, neighbour)
        return [
            dist.P2POp(dist.isend, mine.contiguous(), peer, self._group),
            dist.P2POp(dist.irecv, theirs, peer, self._group),
        ]

    def gather(self, decoded: tuple[Tensor, State]) -> tuple[Tensor, State]:
        frames, state = decoded
        parts = [torch.empty_like(frames).contiguous() for _ in range(self._ranks)]
        dist.all_gather(parts, frames.contiguous(), self._group)
        return torch.cat(parts, dim=-2), state
