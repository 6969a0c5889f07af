"""Paint with implicit shapes: masks, smooth steps, layers.

Legend: maps are [B, H, W] float32, colours [B, 3, 1, 1] or [B, 3, H, W] in 0..1 (display space).
Distances are negative inside a shape.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    """Smooth step from 0 at `low` to 1 at `high`; `low` may be the larger one."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def hill(x: Tensor, width: float | Tensor) -> Tensor:
    """A bell of height 1: exp(-(x / width)^2)."""
    q = x / width
    return torch.exp((q * q).clamp(max=20).neg())  # unclamped, denormals slow CPUs down


def fill(distance: Tensor, pixel: Tensor) -> Tensor:
    """Coverage in 0..1 of a shape whose signed `distance` is in the units of `pixel`."""
    return (0.5 - distance / pixel).clamp(0, 1)


def outline_of(field: Tensor, size: int) -> Tensor:
    """Signed distance in pixels to the zero line of any smooth `field`, by its slope."""
    dy, dx = slopes(field)
    return field / (torch.sqrt(dx * dx + dy * dy) + 1e-4 / size)


def slopes(field: Tensor) -> tuple[Tensor, Tensor]:
    """Change per pixel along rows and columns, central differences, borders repeated."""
    dy = torch.cat(
        [
            field[:, 1:2] - field[:, :1],
            (field[:, 2:] - field[:, :-2]) * 0.5,
            field[:, -1:] - field[:, -2:-1],
        ],
        1,
    )
    dx = torch.cat(
        [
            field[:, :, 1:2] - field[:, :, :1],
            (field[:, :, 2:] - field[:, :, :-2]) * 0.5,
            field[:, :, -1:] - field[:, :, -2:-1],
        ],
        2,
    )
    return dy, dx


def ellipse(x: Tensor, y: Tensor, rx: float | Tensor, ry: float | Tensor) -> Tensor:
    """Approximate signed distance to an axis-aligned ellipse about the origin."""
    px, py = x / rx, y / ry
    k0 = torch.sqrt(px * px + py * py + 1e-9)
    qx, qy = px / rx, py / ry
    k1 = torch.sqrt(qx * qx + qy * qy + 1e-9)
    return k0 * (k0 - 1) / k1


def box(x: Tensor, y: Tensor, hx: float | Tensor, hy: float | Tensor, r: float | Tensor) -> Tensor:
    """Signed distance to a box of half sizes `hx`, `hy` with corners rounded by `r`."""
    qx, qy = x.abs() - hx + r, y.abs() - hy + r
    outside = torch.sqrt(qx.clamp(min=0) ** 2 + qy.clamp(min=0) ** 2 + 1e-9)
    return outside + torch.maximum(qx, qy).clamp(max=0) - r


def over(under: Tensor, cover: Tensor, colour: Tensor) -> Tensor:
    """`colour` laid over `under` where `cover` [B, H, W] says so."""
    return under + (colour - under) * cover[:, None]


def mix(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    return a + (b - a) * t


def unit(v: Tensor) -> Tensor:
    """Vectors [B, 3, H, W] of length 1."""
    return v / torch.sqrt((v * v).sum(1, keepdim=True) + 1e-12)


def grain(x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    """Smooth noise in about -1..1 with features about one unit in size, without lookup tables."""
    a = torch.sin(x * 1.7 + 2.1 * torch.sin(y * 1.3 + phase) + phase)
    b = torch.sin(y * 2.3 - 1.7 * torch.sin(x * 1.9 - phase * 1.7))
    c = torch.sin((x + y) * 3.1 + 1.3 * torch.sin((x - y) * 2.7 + phase * 2.3))
    return a * 0.4 + b * 0.35 + c * 0.25
