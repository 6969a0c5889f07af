"""Numbers that say how good pictures and mouths are, each a pure function.

Under the training scripts and `evaluate.py`. Pictures are in -1..1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(made: Tensor, true: Tensor, *, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1, where `mask` (0..1) says.

    `mask` broadcasts over the pictures.
    """
    error = (made.clamp(-1, 1) - true).square()
    if mask is None:
        mean = error.mean()
    else:
        weight = mask.expand_as(error)
        mean = (error * weight).sum() / weight.sum()
    return float(10 * torch.log10(4 / mean.clamp(min=1e-12)))


def ssim(made: Tensor, true: Tensor) -> float:
    """Structural similarity of pictures [N, 3, H, W] in -1..1, by channel.

    Wang et al. 2004: Gaussian windows of 11 pixels, deviation 1.5, as published.
    """
    line = torch.exp(-0.5 * ((torch.arange(11.0, device=made.device) - 5) / 1.5) ** 2)
    line = line / line.sum()
    window = torch.outer(line, line)[None, None]

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], window)

    a, b = (made.clamp(-1, 1) + 1) / 2, (true + 1) / 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    upper = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((upper / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r of two series [T]; 0 where one of them does not move."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 1e-12 else 0.0


def lag(made: Tensor, true: Tensor, *, reach: int = 6) -> int:
    """By how many frames `made` [T] follows `true` [T], where they correlate best."""
    frames = len(made)

    def at(shift: int) -> float:
        return correlation(
            made[max(0, shift) : frames + min(0, shift)],
            true[max(0, -shift) : frames - max(0, shift)],
        )

    return max(range(-reach, reach + 1), key=at)
