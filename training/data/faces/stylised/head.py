"""The stylised head's geometry: from a pixel to a place on the face, and back.

The skull is a stretched unit sphere: a pixel finds its place on the sphere, the sphere turns with
yaw and pitch, and the place is stretched to face coordinates (X, Y), in which features are drawn.
Both ways are closed formulas, so landmarks are exact. Relief (nose, lips, brows) stands out of the
sphere: it shifts what is seen when the head turns, and bends the normals that are lit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.paint import hill, mix, slopes, step, unit
from training.data.faces.stylised.traits import Traits

_PIVOT = 0.95  # the neck's joint, about which the head rolls, below the centre
_VIEW = 1.03  # half frames of the head's plane that half a picture shows


@dataclass(frozen=True, slots=True)
class Grid:
    """Pixel centres in the body's frame and in the head's (moved, zoomed, rolled)."""

    body_x: Tensor  # [B, H, W]
    body_y: Tensor
    x: Tensor
    y: Tensor
    pixel: Tensor  # [B, 1, 1], size of a pixel in the head's frame


@dataclass(frozen=True, slots=True)
class Skin:
    """What each pixel sees of the head. Maps [B, H, W]; meaningless where `silhouette` > 0."""

    silhouette: Tensor  # signed distance in the head's frame, negative inside
    x: Tensor  # face coordinates; x is 0 on the ridge of the nose
    y: Tensor  # where it is now
    rest_y: Tensor  # where it would be with the jaw closed
    facing: Tensor  # cosine between the sphere's normal and the viewer
    normal: Tensor  # [B, 3, H, W], unit, y down, z to the viewer
    front: Tensor  # z of the sphere's place before turning: negative behind the ears


def grid(size: int, e: Expression, traits: Traits) -> Grid:
    """Where the pixels of a `size` by `size` picture are."""
    line = (torch.arange(size, device=e.yaw.device) + 0.5) / size * 2 - 1
    py, px = torch.meshgrid(line, line, indexing="ij")
    px, py = px[None] * _VIEW, py[None] * _VIEW - 0.005
    x, y = (px - e.shift_x) / e.zoom, (py - e.shift_y) / e.zoom
    cos, sin = e.roll.cos(), e.roll.sin()
    down = y - _PIVOT
    body_x, body_y = px - 0.3 * e.shift_x, py - 0.3 * e.shift_y - 0.012 * e.breath
    ones = torch.ones_like(traits["width"])
    return Grid(
        body_x=body_x,
        body_y=body_y,
        x=cos * x + sin * down,
        y=-sin * x + cos * down + _PIVOT,
        pixel=2 * _VIEW / size / e.zoom * ones,
    )


def jaw_drop(e: Expression) -> Tensor:
    """How far the chin has gone down, in half frames."""
    return 0.145 * e.open * (1 - 0.75 * e.press)


def profile(y: Tensor, t: Traits, e: Expression) -> Tensor:
    """Half width of the head at height `y` relative to the sphere's."""
    low = (y / t["chin"]).clamp(0, 1.2)
    taper = t["taper"] * step(0.05, 1.15, low) * (1 + 0.18 * e.open)
    jaw = t["jaw"] * hill(low - 0.62, 0.28)
    temple = t["temple"] * hill(y + 0.35, 0.25)
    cheek = 0.02 * e.smile * hill(low - 0.4, 0.2) - 0.02 * e.round * hill(low - 0.55, 0.2)
    dome = 0.15 * step(0.0, -0.85, y / t["crown"])
    return 1 - taper + jaw + temple + cheek + dome


def see(g: Grid, t: Traits, e: Expression) -> Skin:
    """Look at the head through every pixel."""
    below = t["chin"] + jaw_drop(e)
    tall = torch.where(g.y > 0, below, t["crown"])
    sx, sy = g.x / (t["width"] * profile(g.y, t, e)), g.y / tall
    k = sx * sx + sy * sy
    radius = torch.sqrt(k + 1e-9)
    slope_x, slope_y = sx / t["width"], sy / tall
    silhouette = (radius - 1) * radius / torch.sqrt(slope_x**2 + slope_y**2 + 1e-6)
    sz = torch.sqrt((1 - k).clamp(min=0))
    x, y, z = turn_back(sx, sy, sz, e)
    face_y = y * torch.where(y > 0, below, t["crown"])
    face_x = x * t["width"] * profile(face_y, t, e)
    bump = relief(face_x, rest_height(face_y, t, e), t, e)
    lean_x, lean_y = e.yaw.sin(), e.pitch.sin()
    face_x, face_y = face_x - bump * lean_x, face_y - bump * lean_y
    rest = rest_height(face_y, t, e)
    bump = relief(face_x, rest, t, e)
    normal = _bent(sx, sy, sz, bump, t, g.pixel)
    return Skin(silhouette, face_x, face_y, rest, sz, normal, z)


def place(face_x: Tensor, face_y: Tensor, t: Traits, e: Expression) -> tuple[Tensor, Tensor]:
    """Where on the picture (-1..1 each way) a point of the face is: the inverse of `see`.

    Points [N, K] of N faces; traits and expressions are [N, 1].
    """
    below = t["chin"] + jaw_drop(e)
    bump = relief(face_x, rest_height(face_y, t, e), t, e)
    face_x, face_y = face_x + bump * e.yaw.sin(), face_y + bump * e.pitch.sin()
    x = face_x / (t["width"] * profile(face_y, t, e))
    y = face_y / torch.where(face_y > 0, below, t["crown"])
    z = torch.sqrt((1 - x * x - y * y).clamp(min=0))
    sx, sy = _turn(x, y, z, e)
    head_y = sy * torch.where(sy > 0, below, t["crown"])
    head_x = sx * t["width"] * profile(head_y, t, e)
    down = head_y - _PIVOT
    cos, sin = e.roll.cos(), e.roll.sin()
    px = (cos * head_x - sin * down) * e.zoom + e.shift_x
    py = (sin * head_x + cos * down + _PIVOT) * e.zoom + e.shift_y
    return px / _VIEW, (py + 0.005) / _VIEW


def rest_height(y: Tensor, t: Traits, e: Expression) -> Tensor:
    """Height on the closed-jaw face of what is at `y` now: the jaw carries all below the mouth."""
    mouth = t["mouth_y"]
    stretch = (t["chin"] + jaw_drop(e) - mouth) / (t["chin"] - mouth)
    return torch.where(y > mouth, mouth + (y - mouth) / stretch, y)


def turn_back(x: Tensor, y: Tensor, z: Tensor, e: Expression) -> tuple[Tensor, Tensor, Tensor]:
    """From the turned sphere to the face's own directions."""
    cy, sy, cp, sp = e.yaw.cos(), e.yaw.sin(), e.pitch.cos(), e.pitch.sin()
    y1, z1 = cp * y - sp * z, sp * y + cp * z
    return cy * x - sy * z1, y1, sy * x + cy * z1


def _turn(x: Tensor, y: Tensor, z: Tensor, e: Expression) -> tuple[Tensor, Tensor]:
    cy, sy, cp, sp = e.yaw.cos(), e.yaw.sin(), e.pitch.cos(), e.pitch.sin()
    return cy * x + sy * z, cp * y + sp * (-sy * x + cy * z)


def relief(x: Tensor, y: Tensor, t: Traits, e: Expression) -> Tensor:
    """How far the face stands out of its sphere at face coordinates (y at rest), half frames."""
    far = x.abs()
    eye = y - t["eye_y"]
    brow = 0.028 * hill(far - t["eye_x"], 0.17) * hill(eye + 0.15, 0.06)
    socket = -0.055 * hill(far - 0.93 * t["eye_x"], 0.13) * hill(eye, 0.085)
    lift = 0.045 * e.smile
    cheek = (t["cheekbone"] + 0.04 * e.smile) * hill(far - 0.37, 0.15)
    cheek = cheek * hill(y - t["nose_y"] + 0.02 + lift, 0.13)
    hollow = -0.03 * e.open * hill(far - 0.38, 0.12) * hill(y - 0.45, 0.18)
    muzzle = (0.035 + 0.03 * e.round) * hill(x, 0.24) * hill(y - t["mouth_y"], 0.13)
    chin = t["chin_bump"] * hill(x, 0.14) * hill(y - 0.88 * t["chin"], 0.085)
    dip = -0.022 * hill(x, 0.13) * hill(y - t["mouth_y"] - t["lower_lip"] - 0.05, 0.032)
    groove = y - 0.5 * (t["nose_y"] + t["mouth_y"])
    philtrum = -0.012 * hill(x, 0.022) * hill(groove, 0.06)
    face = brow + socket + cheek + hollow + muzzle + chin + dip + philtrum
    return face + nose(x, y, t) - fold(far, y, t, e)


def nose(x: Tensor, y: Tensor, t: Traits) -> Tensor:
    """The nose's part of the relief: bridge, tip and wings."""
    root, tip = t["eye_y"] - 0.03, t["nose_y"]
    along = ((y - root) / (tip - root)).clamp(0, 1)
    ends = step(root - 0.09, root + 0.05, y) * step(tip + 0.07, tip - 0.015, y)
    tall = mix(t["nose_bridge"], t["nose_length"], along)
    ridge = tall * hill(x, t["nose_ridge"] + 0.02 * along) * ends
    wide = t["nose_width"]
    ball = 0.55 * t["nose_length"] * hill(x, 0.62 * wide) * hill(y - tip + 0.012, 0.052)
    wing = 0.42 * t["nose_length"] * hill(x.abs() - 0.78 * wide, 0.04)
    return ridge + ball + wing * hill(y - tip - 0.018, 0.036)


def fold(far: Tensor, y: Tensor, t: Traits, e: Expression) -> Tensor:
    """Depth of the crease from the wing of the nose past the corner of the mouth."""
    top, bottom = t["nose_y"], t["mouth_y"] + 0.06
    along = ((y - top) / (bottom - top)).clamp(0, 1)
    out = t["nose_width"] + 0.045 + (t["mouth_width"] - t["nose_width"] + 0.05) * along**0.8
    deep = (0.005 + 0.012 * e.smile + 0.006 * e.spread) * (0.4 + t["fold"])
    ends = step(top - 0.05, top + 0.04, y) * step(bottom + 0.05, bottom - 0.06, y)
    return deep * ends * hill(far - out - 0.04 * e.smile, 0.036)


def _bent(sx: Tensor, sy: Tensor, sz: Tensor, bump: Tensor, t: Traits, pixel: Tensor) -> Tensor:
    """Unit normals [B, 3, H, W] of the stretched sphere with relief."""
    dy, dx = slopes(bump)
    steep = 1.0 / pixel
    nx = sx / t["width"] * 0.8 - dx * steep * (sz + 0.2).clamp(max=1)
    ny = sy * 0.85 - dy * steep * (sz + 0.2).clamp(max=1)
    normal = torch.stack([nx, ny, sz * 0.9 + 0.12], 1)
    return unit(normal)
