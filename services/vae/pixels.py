"""Between a model's frames and bytes: 8-bit RGB, or I420 as video encoders want it.

Conversion happens once, on the device, before frames cross to the host: I420 is half the bytes of
RGB. The matrix is BT.601, because VP8 knows no other and browsers assume it for streams of this
size that say nothing; H.264 streams made here say it in their header.
"""

from __future__ import annotations

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

# BT.601: shares of red and blue in luma. Green is the rest.
_RED, _BLUE = 0.299, 0.114


class Pixels(Enum):
    """How frames leave the device, uint8.

    RGB24: [F, H, W, 3]. I420: [F, 3H/2, W], the luma plane with both quarter-size chroma planes
    below it, limited range (16..235, 16..240). I420_FULL: the same in full range, which JPEG uses.
    """

    RGB24 = "rgb24"
    I420 = "i420"
    I420_FULL = "i420-full"


def to_pixels(frames: Tensor, pixels: Pixels) -> Tensor:
    """Frames [3, F, H, W] in -1..1 (clamped here) as uint8. I420 needs even sides."""
    unit = (frames.float() / 2 + 0.5).clamp_(0, 1)
    match pixels:
        case Pixels.RGB24:
            return _bytes(unit.permute(1, 2, 3, 0) * 255)
        case Pixels.I420:
            return _i420(unit, luma=(16.0, 219.0), chroma=224.0)
        case Pixels.I420_FULL:
            return _i420(unit, luma=(0.0, 255.0), chroma=255.0)


def from_rgb(frames: Tensor) -> Tensor:
    """uint8 RGB [F, H, W, 3] as a model's frames [3, F, H, W] in -1..1, float32."""
    return frames.permute(3, 0, 1, 2).float() / 127.5 - 1


def _i420(unit: Tensor, *, luma: tuple[float, float], chroma: float) -> Tensor:
    """unit [3, F, H, W] in 0..1; `luma` is (black, range), `chroma` the range around 128."""
    black, span = luma
    y = black + span * _luma(unit)
    small = F.avg_pool2d(unit, 2)
    grey = _luma(small)
    u = 128 + chroma * (small[2] - grey) / (2 - 2 * _BLUE)
    v = 128 + chroma * (small[0] - grey) / (2 - 2 * _RED)
    planes = [plane.flatten(1) for plane in (y, u, v)]
    count, height, width = y.shape
    return _bytes(torch.cat(planes, dim=1)).view(count, height * 3 // 2, width)


def _luma(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.unbind()
    return red * _RED + green * (1 - _RED - _BLUE) + blue * _BLUE


def _bytes(x: Tensor) -> Tensor:
    return x.round().clamp_(0, 255).to(torch.uint8)
