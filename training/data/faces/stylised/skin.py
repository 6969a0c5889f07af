"""Light on the stylised head: tone, warm shadows, highlights, blush, freckles, beard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.paint import grain, hill, mix, over, step
from training.data.faces.stylised.head import Skin, nose
from training.data.faces.stylised.mouth import MouthMaps
from training.data.faces.stylised.traits import Traits


@dataclass(frozen=True, slots=True)
class Light:
    """What falls on each pixel; maps [B, H, W]."""

    lit: Tensor  # 0 in full shade to 1 in full light
    gleam: Tensor  # soft highlight
    gloss: Tensor  # sharp highlight
    rim: Tensor


def cast(skin: Skin, normal: Tensor, t: Traits, hairline: Tensor) -> Light:
    """Light of one lamp and a soft sky on `normal` [B, 3, H, W]; `hairline` is shade from hair."""
    lx, ly = t["light_x"], t["light_y"]
    lz = torch.sqrt((1.35 - lx * lx - ly * ly).clamp(min=0.2))
    size = torch.sqrt(lx * lx + ly * ly + lz * lz)
    lx, ly, lz = lx / size, ly / size, lz / size
    nx, ny, nz = normal.unbind(1)
    lamp = nx * lx + ny * ly + nz * lz
    shade = nose(skin.x + 0.09 * lx, skin.rest_y + 0.09 * ly, t) - nose(skin.x, skin.rest_y, t)
    cast_by_nose = 1 - (0.26 - 0.18 * t["toon"]) * step(0.012, 0.07, shade)
    wrap = 0.32 + 0.25 * t["soft"]
    lit = ((lamp + wrap) / (1 + wrap)).clamp(0, 1) * cast_by_nose * (1 - 0.42 * hairline)
    hx, hy, hz = lx, ly, lz + 1
    half = torch.sqrt(hx * hx + hy * hy + hz * hz)
    shine = ((nx * hx + ny * hy + nz * hz) / half).clamp(0, 1)
    back = (-nx * torch.sign(lx + 1e-6) * 0.9 - ny * 0.2).clamp(0, 1)
    rim = back * step(0.62, 0.1, skin.facing) * t["rim"]
    toon = t["toon"]
    steps = 0.30 + 0.60 * step(0.38, 0.50, lit) + 0.10 * step(0.80, 0.9, lit)
    return Light(
        mix(lit, steps, toon),
        shine**14 * (1 - 0.6 * toon),
        mix(shine**70, step(0.55, 0.62, shine**70), toon),
        rim,
    )


def shade(albedo: Tensor, light: Light) -> Tensor:
    """Colour [B, 3, H, W] of lit skin: shadows are deeper in blue and green than in red."""
    dark = torch.tensor([0.66, 0.50, 0.47], device=albedo.device)[None, :, None, None]
    colour = albedo * mix(dark, torch.ones_like(dark) * 1.05, light.lit[:, None])
    colour = colour + (0.13 * light.gleam * (0.5 + 0.5 * light.lit))[:, None] * (
        0.35 + 0.65 * albedo
    )
    glow = torch.tensor([1.0, 0.96, 0.92], device=albedo.device)[None, :, None, None]
    return (colour + (0.24 * light.rim)[:, None] * glow).clamp(0, 1)


def complexion(skin: Skin, t: Traits, e: Expression, hair: Tensor) -> Tensor:
    """Albedo [B, 3, H, W] of the bare face: blush, freckles, beard."""
    far, y = skin.x.abs(), skin.rest_y
    cheek = hill(far - 0.36, 0.14) * hill(y - t["nose_y"] + 0.01 + 0.03 * e.smile, 0.105)
    tip = 0.6 * hill(skin.x, 0.09) * hill(y - t["nose_y"], 0.06)
    red = torch.tensor([1.0, 0.70, 0.68], device=y.device)[None, :, None, None]
    albedo = over(
        t["skin"].expand(-1, -1, *y.shape[1:]), (cheek + tip) * t["blush"] * 0.75, t["skin"] * red
    )
    spots = grain(skin.x * 62, y * 62, t["phase"]) - 0.42
    band = hill(far - 0.20, 0.22) * hill(y - t["nose_y"] + 0.05, 0.10)
    freckle = step(0.0, 0.28, spots) * band * t["freckles"]
    albedo = over(albedo, 0.45 * freckle, t["skin"] * red * 0.72)
    return _beard(albedo, skin, t, hair)


def _beard(albedo: Tensor, skin: Skin, t: Traits, hair: Tensor) -> Tensor:
    far, y = skin.x.abs(), skin.rest_y
    shape = t["beard_shape"]
    fuzz = 0.022 * grain(skin.x * 34, y * 34, t["phase"])
    goatee = step(0.45, 0.25, shape)
    cheek_line = (
        t["mouth_y"] - 0.13 + 0.10 * hill(far - 0.20, 0.16) - 0.55 * (far - 0.34).clamp(min=0)
    )
    jaw = step(-0.02, 0.055, y - cheek_line + fuzz) * step(
        0.02, 0.10, far + 0.12 * (y > t["mouth_y"])
    )
    sides = mix(torch.ones_like(far), step(0.30, 0.20, far + fuzz), goatee)
    around = (skin.x / (t["mouth_width"] + 0.035)) ** 2 + ((y - t["mouth_y"] - 0.012) / 0.085) ** 2
    clear = step(0.75, 1.15, around + 3 * fuzz)
    full = jaw * sides * clear
    lip_y = t["mouth_y"] - t["upper_lip"] - 0.006
    tache_top = lip_y - 0.060 + 0.22 * (far - 0.03).clamp(min=0) + 0.02 * hill(far, 0.02)
    tache = step(-0.008, 0.012, y - tache_top + 0.3 * fuzz) * step(
        0.012, -0.006, y - lip_y - 0.03 * step(0.1, 0.25, far)
    )
    tache = tache * step(t["mouth_width"] + 0.03, t["mouth_width"] - 0.06, far) * t["moustache"]
    deep = t["beard"]
    strength = (0.30 + 0.62 * step(0.35, 0.6, deep)) * (deep > 0)
    texture = 1 + 0.16 * torch.sin(skin.x * 150 + 6 * grain(skin.x * 14, y * 9, t["phase"]))
    cover = torch.maximum(full, tache) * strength * (0.88 + 0.12 * texture)
    return over(albedo, cover.clamp(0, 1), hair * (0.8 * texture)[:, None])


def polish(face: Tensor, light: Light, m: MouthMaps, skin: Skin, t: Traits) -> Tensor:
    """Moist lips: a broad highlight on the lower one, a faint edge on the upper."""
    full = m.shape.lower_out - m.shape.lower_in
    v = (skin.y - m.shape.lower_in) / (full + 1e-3)
    lean = m.u - 0.22 * torch.sign(t["light_x"])
    low = hill(v - 0.42, 0.20) * hill(lean, 0.42) * step(0.01, 0.03, full)
    top = hill(skin.y - m.shape.upper_out - 0.006, 0.008) * hill(m.u.abs() - 0.22, 0.2)
    shine = (0.05 + 0.22 * t["gloss"]) * low + 0.06 * top
    return (face + (m.lips * shine * (0.3 + 0.7 * light.lit))[:, None]).clamp(0, 1)
