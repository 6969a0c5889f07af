"""Small networks that read a mouth: from latents (a gate, and a loss used with care), from pixels.

The reader of latents says whether a latent space still holds the lips, and may pull a transformer
toward them. It is gamed by whatever it trains, so what it says is never a result; the reader of
pixels, which learns from renderer frames alone and is never a loss, judges.

Legend: B rows, C latent channels, h and w rows and columns of a latent, P frames per latent.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from training.data.faces.expression import MOUTH

_PLACES = (5, 7)  # rows and columns of what a reader of latents says it from
_REACH = 0.22  # of the picture's width, from a mouth's centre to the window's edge

# What a viewer sees first: whether lips part and close. In the order of `MOUTH`.
WORTH = (2.0, 1.0, 1.0, 2.0, 0.7, 0.3)
OPEN, PRESS = MOUTH.index("open"), MOUTH.index("press")


class LatentReader(nn.Module):
    """Mouth controls of one latent frame, seen beside the reference picture's latent.

    It looks at the part of a portrait where mouths are: a tenth of the arithmetic of looking
    everywhere, and hundreds of steps sooner at an answer.
    """

    def __init__(self, channels: int, frames: int, *, width: int = 96) -> None:
        super().__init__()
        self.frames = frames
        self.enter = nn.Conv2d(2 * channels, width, 1)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.far = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(_PLACES)
        self.say = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(_PLACES[0] * _PLACES[1] * width, 128),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(128, frames * len(MOUTH)),
        )

    def forward(self, latent: Tensor, anchor: Tensor) -> Tensor:
        """[B, C, h, w] each → [B, P, 6]."""
        latent, anchor = _below_the_nose(latent), _below_the_nose(anchor)
        x = F.gelu(self.enter(torch.cat([latent - anchor, latent], 1)))
        x = F.gelu(self.near(x))
        x = self.pool(F.gelu(self.far(x))).flatten(1)
        out: Tensor = self.say(x).unflatten(1, (self.frames, len(MOUTH)))
        return out


class PixelReader(nn.Module):
    """Mouth controls of a crop around the mouth, [B, 3, 64, 96] in -1..1."""

    SIZE = (64, 96)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            layers += [
                nn.Conv2d(inside, outside, 3, stride=2, padding=1),
                nn.GroupNorm(4, outside),
                nn.SiLU(),
            ]
        self.see = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self.say = nn.Sequential(nn.Linear(64 * 4 * 6, 96), nn.SiLU(), nn.Linear(96, len(MOUTH)))

    def forward(self, crop: Tensor) -> Tensor:
        out: Tensor = self.say(self.see(crop))
        return out


def _below_the_nose(x: Tensor) -> Tensor:
    """The part of portraits [B, C, h, w] in which mouths are."""
    height, width = x.shape[-2:]
    top, bottom = int(0.55 * height), math.ceil(0.96 * height)
    left, right = int(0.2 * width), math.ceil(0.8 * width)
    return x[..., top:bottom, left:right]


def load_reader(path: Path, channels: int, frames: int, device: torch.device) -> LatentReader:
    """A trained reader of latents, frozen."""
    reader = LatentReader(channels, frames)
    reader.load_state_dict(load_file(path))
    return reader.to(device).eval().requires_grad_(False)


def lips_apart(controls: Tensor) -> Tensor:
    """How far the lips are apart, [..., 6] → [...]: the opening, less what presses them shut."""
    return controls[..., OPEN] * (1 - controls[..., PRESS].clamp(0, 1))


def mouth_crop(frames: Tensor, boxes: Tensor) -> Tensor:
    """Windows around mouths in frames [N, 3, H, W], centred on their boxes [N, 4]: [N, 3, 64, 96].

    Of one size in the picture, whatever the lips do, so that how far they are apart stays to be
    seen. Boxes are (left, top, right, bottom) in parts of the picture.
    """
    rows, columns = PixelReader.SIZE
    across = torch.linspace(-_REACH, _REACH, columns, device=frames.device)
    reach = _REACH * rows / columns * frames.shape[-1] / frames.shape[-2]
    down = torch.linspace(-reach, reach, rows, device=frames.device)
    # grid_sample counts from -1 to 1 what boxes count from 0 to 1.
    x = (boxes[:, 0] + boxes[:, 2] - 1)[:, None, None] + 2 * across
    y = (boxes[:, 1] + boxes[:, 3] - 1)[:, None, None] + 2 * down[:, None]
    places = torch.stack([x.expand(-1, rows, -1), y.expand(-1, -1, columns)], -1)
    return F.grid_sample(frames, places, padding_mode="border", align_corners=False)
