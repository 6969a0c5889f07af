"""Neck, shoulders and clothes, ears, earrings and glasses of the stylised character."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.paint import box, ellipse, fill, hill, mix, over, step
from training.data.faces.stylised.head import Grid, Skin, jaw_drop
from training.data.faces.stylised.traits import Traits

_WARM = (0.66, 0.50, 0.47)  # what shade does to skin


def draw_body(picture: Tensor, g: Grid, t: Traits, e: Expression) -> Tensor:
    """Shoulders, garment and neck, in front of the hair that hangs behind."""
    x, y = g.body_x, g.body_y
    pixel = g.pixel
    slope = 0.90 + 0.40 * (x.abs() / t["shoulder"]) ** 2.2
    shoulders = y - slope
    picture = over(picture, fill(-shoulders, pixel), _garment(x, y, slope, t))
    neck_x = x - 0.10 * e.yaw.sin()
    half = t["neck"] * (1 + 0.20 * step(0.75, 1.06, y) ** 2)
    collar = _collar(x, y, t)
    shape = torch.maximum(torch.maximum(neck_x.abs() - half, collar), 0.3 - y)
    light = 0.5 + 0.5 * (neck_x / half * t["light_x"]).clamp(-1, 1)
    chin = t["chin"] + jaw_drop(e)
    under = step(chin + 0.20, chin - 0.02, y + 0.12 * (x / 0.4) ** 2)
    lit = (0.35 + 0.55 * light) * (1 - 0.95 * under) * step(1.35, 0.5, neck_x.abs() / half)
    lit = mix(lit, 0.25 + 0.6 * step(0.40, 0.45, lit), t["toon"])
    dark = torch.tensor(_WARM, device=x.device)[None, :, None, None] * 0.88
    skin = t["skin"] * mix(dark, torch.ones_like(dark), lit.clamp(0, 1)[:, None])
    tendon = hill(neck_x.abs() - 0.10 - 0.10 * (1.05 - y), 0.03) * step(0.85, 1.0, y)
    skin = skin * (1 - 0.06 * tendon)[:, None]
    picture = over(picture, fill(shape, pixel), skin)
    hem = torch.maximum((collar - 0.012).abs() - 0.013, neck_x.abs() - half - 0.012)
    hem = torch.maximum(hem, slope - 0.02 - y)
    return over(picture, fill(hem, 1.4 * pixel), t["cloth2"] * 0.75)


def _collar(x: Tensor, y: Tensor, t: Traits) -> Tensor:
    """Negative above the garment's neckline."""
    crew = y - (1.005 - 0.30 * (x / 0.42) ** 2)
    vee = y - (1.16 - 0.62 * x.abs())
    wide = y - (1.08 - 0.22 * (x / 0.42) ** 2)
    roll = y - (0.93 - 0.05 * (x / 0.4) ** 2)
    kind = t["collar"]
    line = torch.where(kind < 0.5, crew, torch.where(kind < 1.5, vee, wide))
    return torch.where(kind > 2.5, roll, line)


def _garment(x: Tensor, y: Tensor, slope: Tensor, t: Traits) -> Tensor:
    kind = t["pattern"]
    bands = step(-0.15, 0.15, torch.sin((y - 0.35 * x * x) * 34))
    checks = bands * 0.5 + 0.5 * step(-0.15, 0.15, torch.sin(x * 30))
    where = torch.where(kind < 1.5, torch.zeros_like(bands), torch.where(kind < 2.5, bands, checks))
    strength = torch.where(kind > 2.5, 0.45, 0.85)
    cloth = mix(t["cloth"], t["cloth2"], (where * strength)[:, None])
    fall = 0.84 + 0.22 * step(0.25, 0.0, y - slope) + 0.14 * (x * t["light_x"]).clamp(-1, 1)
    crease = 0.05 * torch.sin(x * 7 + 3 * torch.sin(y * 5 + t["phase"]))
    neck = 1 - 0.35 * step(0.62, 0.3, x.abs()) * step(1.15, 0.92, y)
    return (cloth * ((fall + crease) * neck)[:, None]).clamp(0, 1)


def draw_ears(picture: Tensor, g: Grid, t: Traits, e: Expression) -> Tensor:
    """Both ears with their folds; they swing with yaw, behind the face."""
    cy, sy, sp = e.yaw.cos(), e.yaw.sin(), e.pitch.sin()
    side = torch.where(g.x < 0, -1.0, 1.0)
    cx = side * (0.985 * t["width"]) * cy - 0.10 * sy
    dx = (g.x - cx) * side
    dy = g.y - t["eye_y"] - 0.105 + 0.25 * sp
    rx, ry = 0.082 * t["ear"], 0.155 * t["ear"]
    dx = dx + 0.18 * dy * (dy > 0)
    shape = ellipse(dx - 0.02, dy, rx, ry)
    light = 0.55 + 0.35 * (side * t["light_x"]).clamp(-1, 1)
    dark = torch.tensor(_WARM, device=dx.device)[None, :, None, None]
    skin = t["skin"] * mix(dark, torch.ones_like(dark), light[:, None])
    inner = hill(shape + 0.034, 0.016) * step(-0.13, -0.02, dx + 0.03)
    bowl = step(0.0, -0.05, ellipse(dx + 0.005, dy + 0.005, 0.55 * rx, 0.55 * ry))
    skin = skin * (1 - 0.30 * inner - 0.34 * bowl)[:, None]
    picture = over(picture, fill(shape - 0.010, g.pixel) * t["outline"], t["skin"] * 0.12)
    picture = over(picture, fill(shape, 1.2 * g.pixel), skin)
    stud = torch.sqrt((dx + 0.028) ** 2 + (dy - 0.9 * ry) ** 2 + 1e-9)
    gold = (
        t["cloth2"] * 0.4 + torch.tensor([0.52, 0.44, 0.26], device=dx.device)[None, :, None, None]
    )
    picture = over(picture, fill(stud - 0.026, g.pixel) * t["earring"], gold * 0.85)
    glint = torch.sqrt((dx + 0.034) ** 2 + (dy - 0.9 * ry + 0.008) ** 2 + 1e-9)
    return over(picture, fill(glint - 0.008, g.pixel) * t["earring"], torch.ones_like(gold))


def draw_glasses(
    picture: Tensor, skin: Skin, t: Traits, e: Expression, head: Tensor, px: Tensor
) -> Tensor:
    """Frames a little in front of the eyes, so that they slide over the face when it turns."""
    x = skin.x - 0.07 * e.yaw.sin()
    y = skin.y - t["eye_y"] - 0.018 - 0.05 * e.pitch.sin()
    dx = x.abs() - t["eye_x"] * 1.01
    half = 0.158 + 0.3 * (t["eye_width"] - 0.135)
    tall = half * mix(torch.full_like(half, 0.72), torch.full_like(half, 0.98), t["lens_round"])
    corner = mix(torch.full_like(half, 0.07), torch.full_like(half, 0.15), t["lens_round"])
    lens = box(dx, y, half, tall, corner)
    rim = lens.abs() - t["frame"]
    bridge = torch.maximum((y + 0.035 + 0.3 * x * x).abs() - 0.011, x.abs() - (t["eye_x"] - half))
    temple = torch.maximum((y + 0.05).abs() - 0.012, t["eye_x"] + half - x.abs())
    frame = fill(torch.minimum(torch.minimum(rim, bridge), temple), px) * head * t["glasses"]
    shadow = fill(box(dx, y - 0.03, half, tall, corner).abs() - t["frame"], 5 * px)
    picture = over(picture, 0.22 * shadow * head * t["glasses"] * (1 - t["toon"]), t["skin"] * 0.4)
    inside = fill(lens, px) * head * t["glasses"]
    streak = step(0.02, 0.05, (dx * _side(x) * 0.8 - y + 0.02).abs()) * -1 + 1
    picture = over(picture, inside * (0.05 + 0.10 * streak), torch.ones_like(t["skin"]))
    colour = mix(t["hair"] * 0.3, t["cloth2"], (0.6 * t["lens"])[:, None]) * 0.7
    shine = 1 + 0.5 * hill(y + tall * 0.9, 0.02)
    return over(picture, frame, (colour * shine[:, None]).clamp(0, 1))


def _side(x: Tensor) -> Tensor:
    """-1 left of the nose, 1 right of it."""
    return torch.where(x < 0, -1.0, 1.0)
