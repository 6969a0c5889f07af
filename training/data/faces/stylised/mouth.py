"""The stylised mouth: lips, teeth, tongue and the dark between, from six controls.

Heights are curves over the mouth's width: `u` is -1 at one corner and 1 at the other. The upper jaw
stays with the skull, the lower one drops; lips ride on both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.paint import fill, hill, mix, over, step
from training.data.faces.stylised.head import Skin
from training.data.faces.stylised.traits import Traits

_CAVITY = (0.20, 0.055, 0.065)
_TONGUE = (0.80, 0.36, 0.38)


@dataclass(frozen=True, slots=True)
class Lips:
    """The four edges of the lips at `u`, face coordinates; y grows downwards."""

    half: Tensor  # half width, from the middle to a corner
    upper_out: Tensor
    upper_in: Tensor
    lower_in: Tensor
    lower_out: Tensor


def gap(e: Expression) -> Tensor:
    """Height of the opening between the lips in the middle, half frames: 0 when closed."""
    shut = 1 - e.press
    parted = 0.24 * e.open + 0.034 * e.teeth * (1 - e.open)
    return parted * shut.clamp(0, 1) ** 1.5


def half_width(t: Traits, e: Expression) -> Tensor:
    """From the middle of the mouth to a corner, half frames."""
    pull = 1 + 0.20 * e.spread + 0.12 * e.smile - 0.46 * e.round - 0.06 * e.open + 0.03 * e.press
    return t["mouth_width"] * pull


def lips(u: Tensor, t: Traits, e: Expression) -> Lips:
    """Edges of the lips at `u` (clamped to the corners)."""
    u = u.clamp(-1, 1)
    arch = (1 - u * u).clamp(min=0)
    middle = t["mouth_y"] + _corner(t, e) * (u * u - 0.25)
    opening = gap(e)
    bow = t["bow"] * hill(u, 0.17) - 0.5 * t["bow"] * hill(u.abs() - 0.30, 0.18)
    curve = arch ** (0.78 - 0.22 * e.round)
    up = (0.30 + 0.16 * e.round) * opening
    top_in = middle - up * curve * (1 - 0.12 * hill(u, 0.2)) + 0.004 * hill(u, 0.25)
    low_in = middle + (opening - up) * curve + 0.004 * hill(u, 0.25)
    full = (1 + 0.30 * e.round - 0.14 * e.smile - 0.12 * e.spread) * (1 - 0.5 * e.press)
    stretch = 1 - 0.12 * e.open
    upper = t["upper_lip"] * full * stretch * arch**0.62 * (1 - bow)
    bitten = 1 - 0.35 * e.teeth * (1 - e.open).clamp(0, 1)
    lower = t["lower_lip"] * full * bitten * stretch * arch**0.55
    return Lips(half_width(t, e), top_in - upper, top_in, low_in, low_in + lower)


def _corner(t: Traits, e: Expression) -> Tensor:
    """How much lower the corners are than the middle (negative is a smile)."""
    return -t["corner"] - 0.075 * e.smile - 0.012 * e.spread + 0.02 * e.round


@dataclass(frozen=True, slots=True)
class MouthMaps:
    """Coverage of lips and of the opening, and the lips' own relief; maps [B, H, W]."""

    lips: Tensor
    inside: Tensor
    relief: Tensor
    shape: Lips
    u: Tensor


def trace(skin: Skin, t: Traits, e: Expression, pixel: Tensor) -> MouthMaps:
    """Find lips and opening on the picture."""
    half = half_width(t, e)
    u = skin.x / half
    shape = lips(u, t, e)
    ends = fill(skin.x.abs() - half, pixel)
    front = (skin.front > 0).float()
    outer = fill(torch.maximum(shape.upper_out - skin.y, skin.y - shape.lower_out), pixel)
    inner = fill(torch.maximum(shape.upper_in - skin.y, skin.y - shape.lower_in), pixel)
    seen = step(0.001, 0.012, gap(e))
    upper = _roll(skin.y, shape.upper_out, shape.upper_in) * 0.022
    lower = _roll(skin.y, shape.lower_in, shape.lower_out) * 0.036
    return MouthMaps(outer * ends * front, inner * ends * front * seen, upper + lower, shape, u)


def _roll(y: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    """A half round between two edges: 1 in the middle, 0 at and beyond both."""
    v = ((y - top) / (bottom - top + 1e-4)).clamp(0, 1)
    return torch.sqrt((v * (1 - v) * 4).clamp(min=1e-6)) * (bottom - top > 1e-4)


def interior(skin: Skin, m: MouthMaps, t: Traits, e: Expression, pixel: Tensor) -> Tensor:
    """Colour [B, 3, H, W] of what is seen between the lips."""
    y, u, shape = skin.y, m.u, m.shape
    depth = ((y - shape.upper_in) / (shape.lower_in - shape.upper_in + 1e-3)).clamp(0, 1)
    dark = torch.tensor(_CAVITY, device=y.device)[None, :, None, None]
    colour = dark * (0.55 + 0.75 * depth)[:, None]
    colour = _tongue(colour, skin, m, e, pixel)
    white = torch.tensor([0.955, 0.94, 0.90], device=y.device)[None, :, None, None]
    white = white + (t["teeth_white"] * 0.04 - 0.03)[:, None]
    shade = (0.72 + 0.34 * step(0.95, 0.35, u.abs())) * (
        0.80 + 0.2 * step(0.0, 0.02, y - shape.upper_in)
    )
    lower_edge = shape.lower_in - (0.004 + 0.034 * e.teeth) * (1 - 0.3 * u * u)
    lower = fill(torch.maximum(lower_edge - y, skin.x.abs() - 0.66 * shape.half), 1.5 * pixel)
    shown = (0.25 + 0.75 * e.teeth) * step(0.1, 0.5, e.teeth + 0.5 * e.spread)
    grooves = 1 - 0.13 * hill(_between(u * 4.4 + 0.5), 0.13)
    colour = over(colour, lower * shown, white * (0.86 * shade * grooves)[:, None])
    line = t["mouth_y"] - 0.010 - _corner(t, e) * 0.25
    edge = (
        line
        - 0.10 * e.open * (0.3 + e.round) * 0.3
        + (0.016 + 0.030 * e.teeth) * (1 - 0.25 * u * u)
    )
    edge = edge - 0.03 * e.round * (1 - e.teeth)
    notch = 0.006 * hill(_between(u * 3.6), 0.16)
    upper = fill(torch.maximum(y - edge + notch, skin.x.abs() - 0.84 * shape.half), 1.3 * pixel)
    grooves = 1 - 0.16 * hill(_between(u * 3.6), 0.10) * step(0.9, 0.3, u.abs())
    return over(colour, upper, white * (shade * grooves)[:, None])


def _between(x: Tensor) -> Tensor:
    """Distance to the nearest whole number: where one tooth ends and the next begins."""
    return (x - torch.round(x)).abs()


def _tongue(colour: Tensor, skin: Skin, m: MouthMaps, e: Expression, pixel: Tensor) -> Tensor:
    base, half = m.shape.lower_in, m.shape.half
    open_now = gap(e)
    top = base - 0.006 - 0.26 * open_now - (0.60 * open_now) * e.tongue
    across = skin.x / (0.70 * half)
    crown = top + 0.06 * across * across
    cover = fill(torch.maximum(crown - skin.y, (across.abs() - 1) * half), 2.5 * pixel)
    light = 0.72 + 0.40 * hill(skin.y - crown - 0.022, 0.028) - 0.10 * hill(skin.x, 0.012)
    pink = torch.tensor(_TONGUE, device=colour.device)[None, :, None, None]
    return over(colour, cover, pink * light[:, None])


def colour_lips(skin_lit: Tensor, m: MouthMaps, t: Traits, light: Tensor) -> Tensor:
    """Lips painted over lit skin; `light` [B, H, W] is the light that falls there."""
    lip = t["lip"] * light[:, None]
    edge = mix(lip, skin_lit, torch.full_like(light, 0.25)[:, None])
    soft = step(0.0, 0.35, 1 - m.u.abs())
    return over(skin_lit, m.lips, mix(edge, lip, soft[:, None]))
