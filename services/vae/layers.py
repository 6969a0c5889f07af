"""The building blocks of the Wan2.1 causal 3-D VAE, with its original parameter names.

B batch, C channels, T frames, H rows, W columns. Every layer is a function of its input and of the
past that `History` hands it; `reach` is how many input frames before the newest one a layer's
newest output depends on, and `rate` how many frames it puts out per frame. Layout and names:
Wan2.1 (`wan/modules/vae.py`).
"""

from __future__ import annotations

import math
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from services.vae.state import History, append


class Layer(Protocol):
    reach: int
    rate: int

    def __call__(self, x: Tensor, history: History) -> Tensor: ...


class Norm(nn.Module):
    """RMS norm over channels, or group norm within each frame. Never looks at other frames."""

    def __init__(self, channels: int, groups: int, *, axes: int = 3) -> None:
        super().__init__()
        shape = (channels,) + (1,) * axes
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape)) if groups else None
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T, H, W]
        gamma = self.gamma.flatten()
        if self.beta is not None:
            frames = rearrange(x, "b c t h w -> (b t) c h w")
            frames = F.group_norm(frames, self.groups, gamma, self.beta.flatten())
            return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
        scale = gamma * math.sqrt(x.shape[1])
        return F.normalize(x, dim=1) * scale.view(-1, 1, 1, 1)


class CausalConv(nn.Conv3d):
    """A convolution that sees `taps - 1` frames of the past, `taps` in all, and no future."""

    def __init__(self, channels: int, out: int, *, taps: int, side: int = 3) -> None:
        super().__init__(channels, out, (taps, side, side), padding=(0, side // 2, side // 2))
        self.reach = taps - 1
        self.rate = 1
        self.slot = -1  # set by `number_slots`

    def forward(self, x: Tensor, history: History) -> Tensor:  # type: ignore[override]
        if self.reach:
            x = history.extend(self.slot, x, self.reach)
        return super().forward(x)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, out: int, *, taps: int, groups: int) -> None:
        super().__init__()
        # Numbered as in the original Sequential, whose SiLUs and dropout hold no parameters.
        self.residual = nn.ModuleDict(
            {
                "0": Norm(channels, groups),
                "2": CausalConv(channels, out, taps=taps),
                "3": Norm(out, groups),
                "6": CausalConv(out, out, taps=taps),
            }
        )
        self.shortcut = nn.Conv3d(channels, out, 1) if channels != out else nn.Identity()
        self.reach = 2 * (taps - 1)
        self.rate = 1

    def forward(self, x: Tensor, history: History) -> Tensor:
        y = F.silu(self.residual["0"](x), inplace=True)
        y = self.residual["2"](y, history)
        y = F.silu(self.residual["3"](y), inplace=True)
        y = self.residual["6"](y, history)
        return cast(Tensor, y + self.shortcut(x))


class Attention(nn.Module):
    """One head over the positions of each frame by itself."""

    reach = 0
    rate = 1

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = Norm(channels, groups, axes=2)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, history: History) -> Tensor:  # noqa: ARG002 - a Layer
        batch, _, frames, height, _ = x.shape
        tokens = rearrange(self.norm(x), "b c t h w -> (b t) 1 (h w) c")
        q, k, v = F.linear(tokens, self.to_qkv.weight.flatten(1), self.to_qkv.bias).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v)
        y = F.linear(y, self.proj.weight.flatten(1), self.proj.bias)
        return x + rearrange(y, "(b t) 1 (h w) c -> b c t h w", b=batch, t=frames, h=height)


class Upsample(nn.Module):
    """Twice the rows and columns and half the channels; twice the frames too when `temporal`."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        # Entry 0 of the original Sequential repeats pixels and has no parameters.
        self.resample = nn.ModuleDict({"1": DoublingConv(channels, channels // 2)})
        self.time_conv = CausalConv(channels, channels * 2, taps=3, side=1) if temporal else None
        self.reach = 2 if temporal else 0
        self.rate = 2 if temporal else 1

    def forward(self, x: Tensor, history: History) -> Tensor:
        if self.time_conv is not None:
            x = _double_time(x, self.time_conv, history)
        frames: Tensor = self.resample["1"](rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


def _double_time(x: Tensor, conv: CausalConv, history: History) -> Tensor:
    """Two frames for each, but one for the first frame of a stream, which `conv` never sees."""
    lead = x[:, :, :1] if history.first else x[:, :, :0]
    rest = x[:, :, lead.shape[2] :]
    if rest.shape[2] == 0:
        history.extend(conv.slot, rest, conv.reach)
        return x
    y = conv(rest, history)
    # Through [B, T, H, W, C] views: that is how the frames lie in memory, so it is one copy.
    y = rearrange(y.permute(0, 2, 3, 4, 1), "b t h w (two c) -> b (t two) h w c", two=2)
    y = y.permute(0, 4, 1, 2, 3)
    return append([lead, y]) if history.first else y


class DoublingConv(nn.Conv2d):
    """`conv2d(repeat(x, 2 x 2), weight, bias, padding=1)` without the big picture in between.

    Four small convolutions, one for each position within a 2 x 2 square, take 16 multiplications
    per input pixel instead of 36. x [N, C, H, W], weight [O, C, 3, 3] -> [N, O, 2H, 2W].
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.out_channels
        bias = None if self.bias is None else self.bias.repeat(4)
        squares = F.conv2d(x, _fold(self.weight), bias, padding=self.padding)
        height, width = squares.shape[2] - 1, squares.shape[3] - 1
        big = x.new_empty((len(x), 2 * height, 2 * width, out)).permute(0, 3, 1, 2)
        for row in (0, 1):
            for column in (0, 1):
                first = (2 * row + column) * out
                square = squares[:, first : first + out, row : row + height]
                big[:, :, row::2, column::2] = square[..., column : column + width]
        return big


def _fold(weight: Tensor) -> Tensor:
    """3 x 3 taps over doubled pixels as 2 x 2 taps over the small ones: [(row column O), C, 2, 2].

    Of 3 neighbouring doubled pixels two are the same small one. For an even output these are the
    last two of the three, for an odd one the first two.
    """
    top, middle, bottom = weight.unbind(2)
    rows = torch.stack(  # [row, O, C, 2, 3]
        [torch.stack([top, middle + bottom], 2), torch.stack([top + middle, bottom], 2)]
    )
    left, middle, right = rows.unbind(4)
    folded = torch.stack(  # [row, column, O, C, 2, 2]
        [torch.stack([left, middle + right], 4), torch.stack([left + middle, right], 4)], 1
    )
    return folded.flatten(0, 2)


class Downsample(nn.Module):
    """Half the rows and columns; half the frames too when `temporal`."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        # Entry 0 of the original Sequential pads and has no parameters.
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = _HalveTime(channels) if temporal else None

    def forward(self, x: Tensor, history: History) -> Tensor:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        frames = self.resample["1"](F.pad(frames, (0, 1, 0, 1)))
        x = rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
        return x if self.time_conv is None else self.time_conv(x, history)


class _HalveTime(nn.Conv3d):
    """One frame for each two, but the first frame of a stream stays as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), stride=(2, 1, 1))
        self.slot = -1  # set by `number_slots`

    def forward(self, x: Tensor, history: History) -> Tensor:  # type: ignore[override]
        if not history.first:
            return super().forward(history.extend(self.slot, x, 1))
        history.remember(self.slot, x, 1)
        if x.shape[2] == 1:
            return x
        return append([x[:, :, :1], super().forward(x)])


class Gather(nn.Module):
    """Frames that share a latent, into channels; a stream's first frame stands for all of its own.

    Of the past it remembers no frame, only that there was one: a slot without frames.
    """

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.slot = -1  # set by `number_slots`

    def forward(self, x: Tensor, history: History) -> Tensor:
        history.remember(self.slot, x, 0)
        if history.first:
            lead = x[:, :, :1].expand(-1, -1, self.frames - 1, -1, -1)
            x = append([lead, x])
        # Through [B, T, H, W, C] views, as the frames lie in memory.
        rows = rearrange(x.permute(0, 2, 3, 4, 1), "b (t f) h w c -> b t h w (f c)", f=self.frames)
        return rows.permute(0, 4, 1, 2, 3)


class Spread(nn.Module):
    """The frames of each latent, out of its channels; of a stream's first latent their mean."""

    reach = 0

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.rate = frames
        self.slot = -1  # set by `number_slots`

    def forward(self, z: Tensor, history: History) -> Tensor:
        history.remember(self.slot, z, 0)
        rows = rearrange(z.permute(0, 2, 3, 4, 1), "b t h w (f c) -> b t f h w c", f=self.rate)
        if not history.first:
            return rows.flatten(1, 2).permute(0, 4, 1, 2, 3)
        pieces = [rows[:, 0].mean(1, keepdim=True), rows[:, 1:].flatten(1, 2)]
        return append([piece.permute(0, 4, 1, 2, 3) for piece in pieces])


def number_slots(tower: nn.Module) -> None:
    """Give everything with a past its place in the tower's `State`."""
    with_past = (
        module
        for module in tower.modules()
        if isinstance(module, _HalveTime | Gather | Spread)
        or (isinstance(module, CausalConv) and module.reach)
    )
    for slot, module in enumerate(with_past):
        module.slot = slot
