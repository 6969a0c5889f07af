"""Hair of the stylised head: a shell on the skull in front, a silhouette behind.

A style is a row of numbers; a character's row is jittered, so that no two bobs are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from training.data.faces.draw import uniform
from training.data.faces.expression import Expression
from training.data.faces.paint import box, ellipse, fill, grain, hill, mix, outline_of, over, step
from training.data.faces.stylised.head import Grid, Skin, profile, turn_back
from training.data.faces.stylised.traits import Traits


class _Style(NamedTuple):
    """One way to wear hair; lengths in half frames, y down."""

    volume: float = 1.05  # of the shell, relative to the skull
    top: float = 0.05  # more of it upwards
    line: float = -0.50  # height of the hairline in the middle
    part: float = 0.0  # where the hair parts, aside from the middle
    sweep: float = 0.0  # how far it falls to both sides of the part
    fringe: float = 0.0  # depth of loose locks on the forehead
    clumps: float = 5.0  # how many
    recede: float = 0.0  # at the temples; negative fills them
    side: float = 0.0  # how low it hangs in front of the ears
    back: float = 0.0  # and behind the head
    spread: float = 0.95  # width behind the head
    wave: float = 0.02
    curl: float = 0.0
    bun: float = 0.0


class _Worn(NamedTuple):
    style: _Style
    by_women: float  # share
    by_men: float


_WORN = (
    # cropped
    _Worn(_Style(1.025, 0.0, -0.50, recede=0.10, side=-0.02, back=-0.1, spread=0.90), 0.02, 0.13),
    # side part
    _Worn(_Style(1.06, 0.06, -0.50, 0.28, 0.30, 0.03, 6.0, 0.08), 0.0, 0.16),
    # quiff
    _Worn(_Style(1.05, 0.14, -0.52, 0.10, 0.10, 0.03, 7.0, 0.14, wave=0.04, curl=0.05), 0.0, 0.13),
    # loose fringe
    _Worn(_Style(1.075, 0.05, -0.38, 0.12, 0.10, 0.10, 9.0, 0.0, 0.06, 0.1, 1.0, 0.05), 0.06, 0.14),
    # curls
    _Worn(_Style(1.11, 0.07, -0.42, 0.05, 0, 0.06, 8, 0, 0.08, 0.2, 1.06, 0.03, 0.8), 0.08, 0.12),
    # afro
    _Worn(_Style(1.22, 0.10, -0.44, 0, 0, 0.02, 9, 0, 0.08, 0.2, 1.18, 0.02, 1.0), 0.06, 0.07),
    # curtains
    _Worn(_Style(1.075, 0.07, -0.55, 0.03, 0.95, 0.01, 4, 0, 0.10, 0.2, 0.98, 0.05), 0.04, 0.10),
    # bob
    _Worn(_Style(1.085, 0.04, -0.52, 0.15, 0.40, 0.01, 4, 0, 0.50, 0.62, 1.08, 0.03), 0.16, 0.0),
    # bob with a straight fringe
    _Worn(_Style(1.085, 0.03, -0.27, 0, 0, 0.02, 8, -0.3, 0.46, 0.60, 1.07), 0.10, 0.0),
    # long, parted in the middle
    _Worn(_Style(1.075, 0.04, -0.56, 0, 0.85, 0, 4, 0, 0.80, 1.3, 1.02, 0.03), 0.18, 0.02),
    # long waves
    _Worn(
        _Style(1.095, 0.05, -0.54, 0.24, 0.60, 0.02, 4, 0, 0.78, 1.3, 1.1, 0.35, 0.12), 0.16, 0.0
    ),
    # bun
    _Worn(_Style(1.035, 0.03, -0.54, 0, 0.10, 0, 4, 0.1, 0, 0.05, 0.93, 0.01, 0, 1.0), 0.13, 0.02),
    # receding
    _Worn(_Style(1.02, 0.0, -0.60, fringe=0.02, clumps=3.0, recede=0.5, spread=0.92), 0.0, 0.06),
    # none
    _Worn(_Style(1.0, 0.0, -2.0, side=-0.5, back=-2.0, spread=0.5), 0.01, 0.05),
)
_BALD = len(_WORN) - 1
_JITTER = _Style(0.012, 0.03, 0.03, 0.08, 0.08, 0.015, 1.2, 0.04, 0.04, 0.06, 0.03, 0.02, 0.05, 0.0)


def draw_hair(seed: Tensor, masculine: Tensor) -> Traits:
    """Numbers of each character's hair, by name; `masculine` [N] as in the traits."""
    weights = torch.tensor([[w.by_women for w in _WORN], [w.by_men for w in _WORN]])
    ladder = (weights / weights.sum(1, keepdim=True)).cumsum(1)[(masculine > 0.5).long()]
    worn = (uniform(seed, "hair style")[:, None] > ladder[:, :-1]).sum(1)
    row = torch.tensor([list(w.style) for w in _WORN])[worn]
    bald = worn == _BALD
    numbers = {}
    for column, (name, wide) in enumerate(_JITTER._asdict().items()):
        jitter = (uniform(seed, f"hair {name}") * 2 - 1) * wide * (~bald)
        numbers[f"hair_{name}"] = row[:, column] + jitter
    flip = torch.where(uniform(seed, "hair flip") < 0.5, -1.0, 1.0)
    numbers["hair_part"] = numbers["hair_part"] * flip
    numbers["hair_on"] = (~bald).float()
    return numbers


@dataclass(frozen=True, slots=True)
class Front:
    """The hair that lies on the skull; maps [B, H, W]."""

    cover: Tensor
    colour: Tensor  # [B, 3, H, W]
    shade: Tensor  # what it throws on the face, 0..1


def _strands(x: Tensor, y: Tensor, t: Traits) -> tuple[Tensor, Tensor]:
    """Tone of single strands in about -1..1, and the distance from the part."""
    dx, dy = x - t["hair_part"], y + 1.35 * t["crown"]
    r = torch.sqrt(dx * dx + dy * dy + 1e-6)
    angle = torch.atan2(dx, dy)
    bend = t["hair_wave"] * torch.sin(r * 15 + angle * 2) * 0.35
    lock = angle * 7 + bend
    fine = torch.sin(lock * 13 + 1.3 * torch.sin(lock * 3.1 + t["phase"])) * 0.35
    broad = torch.sin(lock * 2.7 + t["phase"]) * 0.35 + torch.sin(lock * 4.9 - t["phase"] * 2) * 0.3
    curls = grain(x * 21, y * 21, t["phase"]) * 1.15
    straight = fine + 1.2 * broad
    return mix(straight, curls, t["hair_curl"].clamp(0, 1)), r


def lay_front(g: Grid, skin: Skin, t: Traits, e: Expression) -> Front:
    """Hair in front: its shell is a larger skull; the hairline is a curve over the forehead."""
    swell = 1 + _puff(g, t)
    wide = t["hair_volume"] * swell
    tall = (t["hair_volume"] + t["hair_top"] * (g.y < 0)) * swell
    sx = g.x / (t["width"] * profile(g.y.clamp(max=0.3), t, e) * wide)
    sy = g.y / (torch.where(g.y > 0, t["chin"], t["crown"]) * tall)
    k = sx * sx + sy * sy
    sz = torch.sqrt((1 - k).clamp(min=0))
    x, y, z = turn_back(sx, sy, sz, e)
    x = x * t["width"] * t["hair_volume"]
    y = y * torch.where(y > 0, t["chin"], t["crown"] * (t["hair_volume"] + t["hair_top"]))
    tone, r = _strands(x, y, t)
    edge = hairline(x, y, t) + 0.010 * tone * step(0.0, 0.05, t["hair_fringe"])
    nape = y - t["hair_side"].clamp(max=0.28)
    beside = step(-0.01, 0.005, skin.silhouette)  # past the cheek the far side of the hair shows
    edge = torch.where(z > 0, mix(edge, torch.minimum(edge, nape), beside), nape)
    size = g.x.shape[-1]
    rim, shell = outline_of(edge, size), outline_of(torch.sqrt(k + 1e-9) - 1, size)
    soft = (1.2 + 1.5 * t["hair_curl"]) * size / 256
    cover = (0.5 - rim / soft).clamp(0, 1) * (0.5 - shell).clamp(0, 1) * t["hair_on"]
    colour = _lit(sx, sy, sz, k, tone, r, t)
    deep = 1 - 0.28 * step(0.05, -0.005, edge.abs()) * (z > 0)
    ink = step(2.2, 1.0, torch.minimum(rim.abs(), shell.abs()) * 256 / size) * t["outline"]
    colour = colour * (deep * (1 - 0.75 * ink))[:, None]
    over_face = hairline(skin.x + 0.04 * t["light_x"], skin.y - 0.03, t)
    faded = 0.45 * step(-0.16, 0.02, y) * step(0.1, 0.02, t["hair_side"]) * (t["hair_curl"] < 0.4)
    cover = cover * (1 - faded)  # barbers leave short sides thinner towards the ear
    return Front(cover, colour.clamp(0, 1), step(0.12, 0.0, over_face) * t["hair_on"])


def _lit(
    sx: Tensor, sy: Tensor, sz: Tensor, k: Tensor, tone: Tensor, r: Tensor, t: Traits
) -> Tensor:
    """Colour [B, 3, H, W] of the shell: round, with a band of light across the strands."""
    light = 0.74 + 0.30 * (sx * t["light_x"] - sy * 0.55 + sz * 0.5)
    light = light * (1 - 0.32 * step(0.55, 1.0, k))
    light = mix(light, 0.72 + 0.34 * step(0.72, 0.78, light), t["toon"])
    colour = t["hair"] * (light * (1 + 0.17 * tone))[:, None]
    band = hill(r - 0.80 - 0.05 * tone, 0.085) + 0.5 * hill(r - 1.05 - 0.04 * tone, 0.07)
    gleam = band * (0.5 + 0.5 * light) * (0.6 + 0.4 * tone) * (1 - 0.75 * t["hair_curl"])
    strength = 0.20 - 0.08 * t["toon"]
    return colour + (gleam * strength)[:, None] * (0.35 + 0.9 * t["hair"])


def hairline(x: Tensor, y: Tensor, t: Traits) -> Tensor:
    """Signed distance to the hair's edge on the face: negative where hair covers it."""
    from_part = x - t["hair_part"]
    far = x.abs()
    side = torch.sign(t["hair_part"] + 1e-6)
    sweep = t["hair_sweep"] * from_part.abs() ** 1.5 * 0.75 * (1 - 0.35 * (from_part * side > 0))
    clump = t["hair_clumps"] * from_part + t["phase"]
    locks = (torch.sin(clump) * 0.6 + torch.sin(clump * 1.7 + 1) * 0.4).abs() - 0.4
    recede = -0.5 * t["hair_recede"] * hill(far - 0.32, 0.13)
    line = t["hair_line"] + sweep + t["hair_fringe"] * locks + recede
    long = step(0.2, 0.45, t["hair_side"])
    framing = 0.05 * long * torch.cos(3.6 * y + 0.9) + 0.02 * t["hair_wave"] * torch.sin(y * 17)
    inner = t["width"] * (0.83 - 0.07 * long) + framing + 0.10 * (1 - long) * step(-0.35, 0.1, y)
    lock = torch.maximum(inner - far, y - t["hair_side"] - 0.25 * (far - inner))
    return _blend(y - line, lock, 0.14)


def _blend(a: Tensor, b: Tensor, r: float) -> Tensor:
    """Union of two shapes with the corner between them rounded by about `r`."""
    share = (0.5 + 0.5 * (b - a) / r).clamp(0, 1)
    return mix(b, a, share) - r * share * (1 - share)


def _puff(g: Grid, t: Traits) -> Tensor:
    """Irregular outline of curls and tousled hair."""
    angle = torch.atan2(g.x, -g.y)
    bumps = torch.sin(angle * 13 + t["phase"]).abs() + 0.6 * torch.sin(angle * 21 - t["phase"] * 2)
    tousle = torch.sin(angle * 9 + t["phase"] * 3) + 0.7 * torch.sin(angle * 17 + t["phase"])
    return 0.020 * t["hair_curl"] * bumps + 0.03 * t["hair_fringe"] * tousle


def lay_back(picture: Tensor, g: Grid, t: Traits, e: Expression) -> Tensor:
    """Hair behind the head over `picture`."""
    ox, oy = -0.16 * e.yaw.sin(), -0.10 * e.pitch.sin()
    puff = 1 + _puff(g, t)
    x, y = (g.x - ox) / puff, (g.y - oy) / puff
    wave = 0.055 * t["hair_wave"] * torch.sin(g.y * 13 + t["phase"] + 2 * (g.x > 0))
    wide = t["width"] * t["hair_spread"]
    cap = ellipse(x, y + 0.06, wide, t["crown"] * t["hair_volume"] * 0.96)
    low = t["hair_back"]
    fall = box(
        x + wave,
        y - (low - 0.35) * 0.5,
        wide * (1 + 0.04 * step(0, 1, y)),
        (low + 0.35) * 0.5,
        0.16,
    )
    shape = torch.where(low > 0.3, torch.minimum(cap, fall), cap)
    bun = ellipse(x, y + t["crown"] * 1.16, 0.27, 0.22)
    shape = torch.where(t["hair_bun"] > 0.5, torch.minimum(shape, bun), shape)
    cover = fill(shape, 1.2 * g.pixel) * t["hair_on"]
    flow = g.x * 30 + wave * 60
    tone = torch.sin(flow + torch.sin(g.y * 4 + t["phase"])) * 0.5 + torch.sin(flow * 2.3) * 0.3
    tone = mix(tone, grain(g.x * 21, g.y * 21, t["phase"]), t["hair_curl"].clamp(0, 1))
    inner = 0.50 + 0.34 * step(0.16, 0.0, -shape) + 0.12 * step(-0.5, 0.6, g.x * t["light_x"])
    bunned = step(0.02, -0.02, bun) * t["hair_bun"] * 0.14 * hill(y + 1.25 * t["crown"], 0.2)
    colour = t["hair"] * ((inner + bunned) * (1 + 0.16 * tone))[:, None]
    return over(picture, cover, colour.clamp(0, 1))


def lay_fall(picture: Tensor, g: Grid, t: Traits, e: Expression) -> Tensor:
    """Long hair in front of the shoulders, where the shell on the skull has ended."""
    x, y = g.x + 0.10 * e.yaw.sin() * step(0.2, 1.0, g.y), g.y
    wave = 0.05 * t["hair_wave"] * torch.sin(y * 13 + t["phase"] + 2 * (x > 0))
    inner = t["width"] * 0.70 + 0.05 * torch.cos(3.6 * y + 0.9) + wave
    outer = t["width"] * t["hair_volume"] * (0.93 + 0.10 * step(0.2, 0.9, y)) + wave
    low = t["hair_back"].clamp(min=-1) - 0.04 + 0.16 * (x.abs() - inner)
    shape = torch.maximum(torch.maximum(inner - x.abs(), x.abs() - outer), y - low)
    shape = torch.maximum(shape, 0.12 - y)
    cover = fill(shape, 1.2 * g.pixel) * t["hair_on"] * (t["hair_back"] > 0.4)
    flow = (x.abs() + wave) * 34
    tone = torch.sin(flow + torch.sin(y * 4 + t["phase"])) * 0.5 + torch.sin(flow * 2.3) * 0.35
    middle = (x.abs() - inner) / (outer - inner + 1e-3)
    light = 0.50 + 0.20 * hill(middle - 0.45, 0.4) + 0.10 * (x * t["light_x"]).clamp(-1, 1)
    light = light + 0.10 * hill(y - 0.55, 0.16)
    return over(picture, cover, t["hair"] * (light * (1 + 0.14 * tone))[:, None])
