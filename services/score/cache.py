"""Keys and values that outlive a pass: the window a pass reads, and what a session keeps.

Between `attention.py` and `passes.py`. A `Window` is where a pass happens: preallocated, at fixed
addresses (so that recorded steps find it), one row per session of a batch, laid out

    [ anchor | own chunk | finished chunks, newest first ]

so that everything a pass may see is a prefix: a context pass sees the first two parts, a chunk
being denoised sees as many finished chunks as there are. A `Tape` is what a session or an avatar
keeps between passes; it is copied into the window when its turn comes (0.5 % of a chunk's time at
18B), so sessions share one window and an avatar's anchor is stored once.

Legend: B rows, L tokens of a pass, T tokens of the window, H heads, D head size, Y layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.score.attention import KeysValues
from services.score.config import DitConfig
from services.score.rope import turn


class Handed:
    """Earlier keys and values, handed on by concatenation: gradients flow through it."""

    def __init__(self, *past: KeysValues) -> None:
        self._past = past
        self.own: KeysValues | None = None  # of the latest pass, [B, L, H, D]

    def extend(self, k: Tensor, v: Tensor) -> KeysValues:
        self.own = KeysValues(k, v)
        if not self._past:
            return self.own
        parts = (*self._past, self.own)
        return KeysValues(
            torch.cat([part.k for part in parts], 1), torch.cat([part.v for part in parts], 1)
        )


class Tape:
    """Keys and values of some tokens in all layers; memory that stays."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v  # [Y, L, H, D]

    @staticmethod
    def of(layers: Sequence[Handed], row: int = 0) -> Tape:
        """What a pass left in `layers`, for one row of the batch."""
        own = [layer.own for layer in layers if layer.own is not None]
        assert len(own) == len(layers), "no pass has run"
        return Tape(torch.stack([kv.k[row] for kv in own]), torch.stack([kv.v[row] for kv in own]))

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


@dataclass(slots=True)
class WindowLayer:
    """One layer of a window, as one pass sees it."""

    k: Tensor  # [B, T, H, D]
    v: Tensor
    own: int  # where this pass's tokens begin
    seen: int  # tokens that it may see, from the first

    def extend(self, k: Tensor, v: Tensor) -> KeysValues:
        end = self.own + k.shape[1]
        self.k[:, self.own : end] = k
        self.v[:, self.own : end] = v
        return KeysValues(self.k[:, : self.seen], self.v[:, : self.seen])


class Window:
    """The keys and values that passes of up to `rows` sessions read and write."""

    def __init__(
        self, config: DitConfig, *, rows: int, heads: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`heads` of the model's heads are kept here: all of them, or one rank's share."""
        self._anchor, self._chunk = config.anchor_tokens, config.chunk_tokens
        tokens = self._anchor + (1 + config.context.chunks) * self._chunk
        shape = (config.layers, rows, tokens, heads, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def rows(self) -> int:
        return self.k.shape[1]

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def parts(self, rows: int, chunks: int) -> list[WindowLayer]:
        """The first `rows` rows for a pass that sees the anchor, itself and `chunks` chunks."""
        seen = self._anchor + (1 + chunks) * self._chunk
        pairs = zip(self.k[:, :rows], self.v[:, :rows], strict=True)
        return [WindowLayer(k, v, self._anchor, seen) for k, v in pairs]

    def put_anchor(self, row: int, anchor: Tape) -> None:
        self.k[:, row, : self._anchor] = anchor.k
        self.v[:, row, : self._anchor] = anchor.v

    def put_context(self, row: int, chunks: Sequence[Tape], moves: Sequence[Tensor | None]) -> None:
        """Lay in finished chunks, newest first; `moves` turn their keys to where they are seen."""
        for age, (chunk, move) in enumerate(zip(chunks, moves, strict=False), start=1):
            place = slice(self._anchor + age * self._chunk, self._anchor + (age + 1) * self._chunk)
            self.k[:, row, place] = chunk.k if move is None else turn(chunk.k, move)
            self.v[:, row, place] = chunk.v

    def take_own(self, row: int, into: Tape) -> None:
        """Copy what the last pass wrote for its own tokens."""
        place = slice(self._anchor, self._anchor + self._chunk)
        into.k.copy_(self.k[:, row, place])
        into.v.copy_(self.v[:, row, place])


class Context:
    """A session's finished chunks: preallocated, the oldest overwritten by the newest."""

    def __init__(self, config: DitConfig, window: Window) -> None:
        shape = (config.layers, config.chunk_tokens, *window.k.shape[-2:])
        self._chunks = [
            Tape(window.k.new_zeros(shape), window.v.new_zeros(shape))
            for _ in range(config.context.chunks)
        ]
        self.filled = 0

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks)

    def newest_first(self) -> Sequence[Tape]:
        return self._chunks[: self.filled]

    def remember(self, window: Window, row: int) -> None:
        """Keep what the last pass in `row` of `window` wrote as the newest chunk."""
        self._chunks.insert(0, self._chunks.pop())
        window.take_own(row, self._chunks[0])
        self.filled = min(self.filled + 1, len(self._chunks))

    def forget(self) -> None:
        self.filled = 0
