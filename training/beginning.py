"""What a VAE starts from: a linear network that already draws the picture, blurred.

Serves `vae.py`. From random weights such a network learned grey shapes and no colour in the half
hour that was tried, perhaps because each tower ends in a norm, which takes away the mean of a
frame's channels and their scale. Here channels that reach a head come in pairs of opposite sign, so
that their mean is zero whatever the picture, beside a pair of constants that dominate the scale;
and `silu(x) - silu(-x) = x` makes the head a linear map. Everything else begins as the identity, an
average (down) or a repetition (up). Learning bends all of it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from services.vae.decoder import Head
from services.vae.layers import CausalConv, Downsample, ResidualBlock, Upsample
from services.vae.model import Vae

_CONSTANT = 3.0  # of the channels that hold the scale of a head's norm
_LOG_VARIANCE = -6.0
_GAIN = 2.0  # of latents, so that they vary by about 1
_BREAK = 0.3  # of the size of fresh weights: what makes filters differ from each other


@torch.no_grad()
def begun(vae: Vae) -> Vae:
    """`vae` as a linear network that sees no past."""
    for module in vae.modules():
        match module:
            case ResidualBlock():
                _skip(module)
            case Downsample():
                _average(cast(nn.Conv2d, module.resample["1"]))
            case Upsample():
                _repeat(cast(nn.Conv2d, module.resample["1"]))
            case _:
                pass
    for conv in (vae.encoder.conv1, vae.decoder.conv1):
        _mix(conv)
    _pair(vae.encoder.downsamples, vae.encoder.head, vae.config.norm_groups)
    _pair(vae.decoder.upsamples, vae.decoder.head, vae.config.norm_groups)
    _pass_latents(vae)
    return _without_past(vae)


def _without_past(vae: Vae) -> Vae:
    """Take the past from every convolution: each frame is drawn by itself.

    Halving time averages two frames and doubling repeats one, so a still clip is a picture.
    """
    for module in vae.modules():
        if isinstance(module, CausalConv) and module.reach:
            module.weight[:, :, :-1] = 0
    for name, module in vae.named_modules():
        if not name.endswith("time_conv"):
            continue
        conv = cast(nn.Conv3d, module)
        same = torch.eye(conv.in_channels).repeat(conv.out_channels // conv.in_channels, 1)
        taps = (1, 2) if conv.stride[0] == 2 else (2,)
        _clear(conv)
        for tap in taps:
            conv.weight[:, :, tap, 0, 0] = same / len(taps)
    return vae


def _skip(block: ResidualBlock) -> None:
    """A block that adds nothing yet."""
    _clear(cast(CausalConv, block.residual["6"]))
    if isinstance(block.shortcut, nn.Conv3d):
        _mix(block.shortcut)


def _mix(conv: nn.Conv3d) -> None:
    """Channels as they are, at the same place and time; new ones are empty, or nearly."""
    fresh = _BREAK * conv.weight
    _clear(conv)
    conv.weight[:, :, -1, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2] = _same(conv)
    conv.weight += fresh


def _average(conv: nn.Conv2d) -> None:
    """The mean of a square of 2 x 2, which begins at the window's first pixel."""
    fresh = _BREAK * conv.weight
    _clear(conv)
    conv.weight[:, :, :2, :2] = torch.eye(conv.in_channels)[..., None, None] / 4
    conv.weight += fresh


def _repeat(conv: nn.Conv2d) -> None:
    """The first half of the channels, at the same place."""
    fresh = _BREAK * conv.weight
    _clear(conv)
    conv.weight[:, :, 1, 1] = _same(conv)
    conv.weight += fresh


def _pair(stages: nn.ModuleList, head: Head, groups: int) -> None:
    """Channels (+u, -u, ..., +constant, -constant) per group before a head, which joins them."""
    last, joins = _last_mixing(stages), cast(CausalConv, head["2"])
    channels = joins.in_channels
    size = channels // max(1, groups)
    place = torch.arange(channels)
    signs = 1.0 - 2 * (place % 2)
    constant = place % size >= size - 2
    # Pairs show one channel after the other, and none is lost to the constants.
    shown = ((~constant).int().cumsum(0) - 1).clamp(min=0) // 2
    last.weight.copy_((last.weight[shown].movedim(0, -1) * signs * ~constant).movedim(-1, 0))
    assert last.bias is not None
    last.bias.copy_(constant * signs * _CONSTANT * (size / 2) ** 0.5)
    _clear(joins)
    for channel in place[~constant].tolist():
        out = int(shown[channel])
        if out < joins.out_channels:
            joins.weight[out, channel, -1, 1, 1] = signs[channel] * _CONSTANT


def _last_mixing(stages: nn.ModuleList) -> nn.Conv2d | nn.Conv3d:
    """The last layer of a tower that mixes channels while its blocks add nothing."""
    for stage in reversed(stages):
        if isinstance(stage, ResidualBlock) and isinstance(stage.shortcut, nn.Conv3d):
            return stage.shortcut
        if isinstance(stage, Upsample):
            return cast(nn.Conv2d, stage.resample["1"])
    raise AssertionError("no layer changes the number of channels")


def _pass_latents(vae: Vae) -> None:
    """Means as the head gives them, and little noise."""
    channels = vae.config.latent_channels
    _clear(vae.conv1)
    _clear(vae.conv2)
    assert vae.conv1.bias is not None
    vae.conv1.weight[:channels, :channels, 0, 0, 0] = torch.eye(channels) * _GAIN
    vae.conv1.bias[channels:] = _LOG_VARIANCE
    vae.conv2.weight[:, :, 0, 0, 0] = torch.eye(channels) / _GAIN


def _same(conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    return torch.eye(conv.out_channels, conv.in_channels)


def _clear(conv: nn.Conv2d | nn.Conv3d) -> None:
    conv.weight.zero_()
    assert conv.bias is not None
    conv.bias.zero_()
