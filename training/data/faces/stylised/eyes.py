"""Eyes, lids, lashes and brows of the stylised head.

Both eyes are drawn at once: `u` runs from -1 at the inner corner to 1 at the outer one of whichever
side a pixel is on. Only gaze knows left from right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.paint import fill, grain, hill, mix, over, step
from training.data.faces.stylised.head import Skin
from training.data.faces.stylised.traits import Traits


@dataclass(frozen=True, slots=True)
class Lids:
    """Edges of the lids over `u`, face coordinates; maps [B, H, W]."""

    u: Tensor
    side: Tensor  # -1 on the picture's left, 1 on its right
    open_edge: Tensor  # where the upper lid rests when the eye is open
    upper: Tensor  # where it is now
    lower: Tensor
    ajar: Tensor  # [B, 1, 1], 1 open to 0 shut


def trace_lids(skin: Skin, t: Traits, e: Expression) -> Lids:
    side = torch.where(skin.x < 0, -1.0, 1.0)
    u = (skin.x.abs() - t["eye_x"]) / t["eye_width"]
    arch = (1 - u * u).clamp(min=0)
    tilt = -t["eye_tilt"] * t["eye_height"] * u
    lean = 1 - t["eye_peak"] * u
    middle = t["eye_y"] + tilt
    ajar = (1 - e.blink) * (1 - 0.16 * e.smile + 0.12 * e.brow) * (1 - 0.22 * e.gaze_y.clamp(0, 1))
    high = middle - t["eye_height"] * arch**0.62 * lean
    squint = 1 - 0.35 * e.smile
    low = middle + t["eye_height"] * t["lower_lid"] * squint * arch**0.8 * (1 + 0.25 * u)
    shut = middle + 0.72 * (low - middle)
    return Lids(u, side, high, shut + (high - shut) * ajar, low, ajar)


def draw_eyes(face: Tensor, skin: Skin, lids: Lids, t: Traits, e: Expression, px: Tensor) -> Tensor:
    """Eyeballs, lids and lashes over the lit face [B, 3, H, W]."""
    u, y = lids.u, skin.y
    across = (u.abs() - 1) * t["eye_width"]
    slit = fill(torch.maximum(torch.maximum(lids.upper - y, y - lids.lower), across), px)
    slit = slit * step(0.02, 0.1, lids.ajar) * (skin.front > 0)
    face = _lid(face, skin, lids, t)
    face = over(face, slit, _eyeball(skin, lids, t, e, px))
    corner = hill(u + 0.93, 0.10) * hill(y - t["eye_y"] - 0.008, 0.014) * slit
    face = over(face, 0.6 * corner, t["skin"] * 0.5 + _rgb(face, 0.42, 0.16, 0.16))
    return _lashes(face, skin, lids, t, px)


def _eyeball(skin: Skin, lids: Lids, t: Traits, e: Expression, px: Tensor) -> Tensor:
    y = skin.y
    under_lid = step(-0.002, 0.050, y - lids.upper)
    round_off = 1 - 0.20 * step(0.45, 1.05, lids.u.abs())
    light = (0.70 + 0.30 * under_lid) * round_off
    white = _rgb(y, 0.965, 0.962, 0.965) * light[:, None]
    cx = lids.side * t["eye_x"] - lids.side * 0.012 + e.gaze_x * 0.052
    cy = t["eye_y"] - 0.012 + e.gaze_y * 0.034
    dx, dy = skin.x - cx, y - cy
    r = torch.sqrt(dx * dx + dy * dy + 1e-9)
    size = t["iris"]
    angle = torch.atan2(dy, dx)
    rays = torch.sin(angle * 17 + t["phase"] * 3) * 0.5 + torch.sin(angle * 31 - t["phase"]) * 0.5
    part = r / size
    glow = 0.62 + 0.55 * step(0.1, 0.9, part) * step(-0.6, 1.0, dy / size) + 0.07 * rays
    ring = 1 - 0.62 * step(0.74, 1.0, part)
    iris = t["iris_colour"] * (glow * ring * (0.62 + 0.38 * under_lid) * 1.25)[:, None]
    eye = over(white, 0.35 * step(1.28, 0.98, part), t["iris_colour"] * 0.35)
    eye = over(eye, fill(r - size, 1.2 * px), iris.clamp(0, 1))
    eye = over(eye, fill(r - 0.45 * size, 1.3 * px), _rgb(y, 0.035, 0.028, 0.035))
    toward = torch.sign(t["light_x"] + 1e-6)
    big = torch.sqrt((dx - toward * 0.36 * size) ** 2 + (dy + 0.40 * size) ** 2 + 1e-9)
    small = torch.sqrt((dx + toward * 0.34 * size) ** 2 + (dy - 0.42 * size) ** 2 + 1e-9)
    eye = over(eye, 0.97 * fill(big - 0.245 * size, 1.2 * px), _rgb(y, 1, 1, 1))
    return over(eye, 0.55 * fill(small - 0.12 * size, 1.4 * px), _rgb(y, 1, 1, 1))


def _lid(face: Tensor, skin: Skin, lids: Lids, t: Traits) -> Tensor:
    """The upper lid's skin, its crease, colour above it and the bag below the eye."""
    y, u = skin.y, lids.u
    within = step(1.08, 0.9, u.abs())
    crease_y = lids.open_edge - 0.022 - 0.016 * t["crease"]
    below = step(-0.010, 0.010, y - crease_y) * step(0.004, -0.004, y - lids.lower)
    face = over(face, 0.13 * below * within, t["skin"] * 0.55)
    makeup = step(-0.075, 0.0, y - lids.open_edge) * step(0.02, -0.02, y - lids.lower) * within
    tint = mix(t["hair"], t["cloth2"], torch.full_like(t["tone"], 0.6)[:, None])
    face = over(face, 0.42 * t["shadow"] * makeup, tint * 0.9)
    line = hill(y - crease_y, 0.0085) * step(1.02, 0.7, u.abs())
    face = over(face, (0.30 + 0.30 * t["crease"]) * line, t["skin"] * _rgb(y, 0.50, 0.36, 0.34))
    bag = hill(y - lids.lower - 0.030, 0.020) * step(1.0, 0.3, u.abs())
    return over(face, (0.05 + 0.16 * t["bag"]) * bag, t["skin"] * _rgb(y, 0.66, 0.46, 0.46))


def _lashes(face: Tensor, skin: Skin, lids: Lids, t: Traits, px: Tensor) -> Tensor:
    y, u = skin.y, lids.u
    ink = t["hair"] * 0.18 + 0.03
    outer = step(-0.6, 1.0, u)
    comb = (0.5 + 0.5 * torch.cos(u * 24)) ** 2 * step(0.0, 0.9, u) * step(0.45, 0.9, t["lash"])
    thick = (0.007 + 0.011 * t["lash"]) * (0.55 + 0.75 * outer) + 0.026 * comb * t["lash"]
    taper = step(1.10, 0.98, u.abs() + 0.06 * (u < 0))
    wing = lids.upper - 0.10 * t["lash"] * (u - 0.96).clamp(min=0)
    rise = torch.maximum(wing - thick - y, y - wing - 0.005)
    face = over(face, 0.95 * fill(rise, 1.2 * px) * taper * (skin.front > 0), ink)
    low = (y - lids.lower).abs() - 0.002
    return over(face, (0.25 + 0.3 * t["lash"]) * fill(low, 1.6 * px) * step(1.0, 0.8, u.abs()), ink)


def draw_brows(face: Tensor, skin: Skin, t: Traits, e: Expression, px: Tensor) -> Tensor:
    """Tapered brows with the direction of hair in them."""
    far = skin.x.abs()
    u = (far - t["eye_x"] - 0.008 - t["brow_gap"]) / t["brow_width"]
    lift = t["brow_y"] + 0.045 * e.brow
    arch = 0.055 * t["brow_arch"] * (u - 0.25) ** 2 - 0.03 * e.brow * hill(u + 0.6, 0.5)
    middle = t["eye_y"] - lift - t["brow_tilt"] * 0.18 * u + arch
    thick = (
        t["brow_thick"]
        * (1 - 0.72 * step(-0.1, 1.05, u) - 0.25 * step(-0.6, -1.0, u))
        * (0.82 + 0.18 * step(-1, -0.7, u))
    )
    hairs = 0.07 * torch.sin(
        (far * 1.0 + (skin.y - middle) * 0.7) * 260 + grain(far * 9, skin.y * 9, t["phase"])
    )
    edge = ((skin.y - middle).abs() - thick * (1 + hairs)) / (1 + 0.25 * u.abs())
    ends = ((u.abs() - 1) * t["brow_width"] + thick).clamp(min=0)
    edge = torch.sqrt(ends**2 + (edge + thick).clamp(min=0) ** 2 + 1e-9) - thick
    cover = fill(edge, 2.2 * px)
    cover = cover * (0.70 + 0.30 * step(-1.0, -0.35, u)) * (skin.front > 0)
    grey = mix(t["hair"], t["skin"] * 0.45, torch.full_like(t["tone"], 0.25)[:, None])
    return over(face, 0.93 * cover, grey * (0.62 + 0.12 * hairs)[:, None])


def _rgb(like: Tensor, r: float, g: float, b: float) -> Tensor:
    return torch.tensor([r, g, b], device=like.device)[None, :, None, None]
