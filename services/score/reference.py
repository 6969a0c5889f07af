"""The reference picture as tokens of its own, and the frames before the first, packed beside it.

Beside `model.py`, for models of the Wan2.2-S2V family. Frames that came before are kept by fewer
tokens the older they are: the last one as it is, two before it halved in every direction, sixteen
before these quartered. Key names are those of the published checkpoints.

Legend: B batch, C latent channels, h and w rows and columns of a latent, M width of the model.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from services.score.config import DitConfig
from services.score.rope import table

_AGES = (1, 2, 16)  # latent frames that each scale takes, the newest first


class Role(enum.IntEnum):
    """What a token is of: the rows of `trainable_cond_mask`."""

    DRAWN = 0
    REFERENCE = 1
    BEFORE = 2


class FramePacker(nn.Module):
    """Latents of the frames before the first → tokens."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = _patches(channels, dim, (1, 2, 2))
        self.proj_2x = _patches(channels, dim, (2, 4, 4))
        self.proj_4x = _patches(channels, dim, (4, 8, 8))

    def standing_still(self, picture: Tensor) -> Tensor:
        """Tokens of a picture [B, C, 1, h, w] that was there all along: [B, tokens, M]."""
        scales = zip((self.proj, self.proj_2x, self.proj_4x), _AGES, strict=True)
        shown = [scale(picture.expand(-1, -1, age, -1, -1)) for scale, age in scales]
        return torch.cat([tokens.flatten(2).transpose(1, 2) for tokens in shown], 1)


def packed_places(config: DitConfig, band: range) -> Tensor:
    """Rotary positions of packed frames, for a band of rows of tokens: [2, tokens, 1, D/2].

    A scale's tokens stand where the first of the latents that they pack would, spread over all of
    their range, as in the published code (`wan/modules/s2v/s2v_utils.py`).
    """
    # Where the video would begin: the reference is thirty frames after that, wherever it is put.
    first = config.positions.anchor - 30
    rows, columns = config.grid
    tables, end = [], first
    for (frames, high, wide), age in zip(config.packed, _AGES, strict=True):
        cells = rows // high
        own = range(band.start // cells, band.stop // cells) if len(band) < rows else range(high)
        down = _spread(0, rows - 1, high)
        tables.append(
            table(
                config.head_dim,
                frames=_spread(end - age, end - 1, frames),
                rows=[down[row] for row in own],
                columns=_spread(0, columns - 1, wide),
            )
        )
        end -= age
    return torch.cat(tables, 1)


def _spread(first: int, last: int, count: int) -> Sequence[int]:
    """`count` whole numbers from `first` to at most `last`, spread evenly, rounded to `first`."""
    if count == 1:
        return [first]
    return [first + (last - first) * n // (count - 1) for n in range(count)]


def _patches(channels: int, dim: int, size: tuple[int, int, int]) -> nn.Conv3d:
    return nn.Conv3d(channels, dim, kernel_size=size, stride=size)
