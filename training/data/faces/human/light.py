"""Colour of what a sample of a human picture sees: skin, eyes, teeth, tongue, hair, clothes.

All functions work on the K hits of a batch: `own(name)` is the trait of the hit's identity, [K] or
[K, 3] (or 1 for K where all hits are of one identity); canonical places are those of `template`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.faces.human.template import hair_coordinates, scalp_edge
from training.data.faces.paint import grain, hill, mix, step

Own = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class Lamp:
    """Light on each hit; all [K] but `toward` [K, 3]."""

    toward: Tensor  # to the key light, unit
    key: Tensor  # cosine to it
    sky: Tensor  # how much the surface faces up, 0..1
    facing: Tensor  # cosine to the viewer
    half: Tensor  # cosine to the half vector: highlights


def lamp(normal: Tensor, own: Own) -> Lamp:
    """Light of the identity's scene on unit normals [K, 3] (y up, z to the viewer)."""
    x, y = own("light_x") * 0.85, -own("light_y")
    toward = torch.stack([x, y * 0.75, torch.full_like(x, 0.9)], -1)
    toward = toward / toward.norm(dim=1, keepdim=True)
    bisector = toward + torch.tensor([0.0, 0.0, 1.0], device=x.device)
    bisector = bisector / bisector.norm(dim=1, keepdim=True)
    return Lamp(
        toward,
        (normal * toward).sum(1),
        0.5 + 0.5 * normal[:, 1],
        normal[:, 2].clamp(0, 1),
        (normal * bisector).sum(1).clamp(0, 1),
    )


def skin(place: Tensor, masks: Tensor, cavity: Tensor, light: Lamp, own: Own) -> Tensor:
    """Skin [K, 3]; `masks` [K, 5] are lips, inside of the mouth, lids, ears, lashes' rim."""
    x, y, z = place.unbind(1)
    far = x.abs()
    lips, inside, lids, ears, rim = masks.unbind(1)
    albedo = _complexion(x, y, far, ears, lids, own)
    albedo = _beard(albedo, x, y, far, z, own)
    lip = step(0.30, 0.70, lips) * (z > 0.05)
    albedo = _over(
        albedo, lip, own("lip") * (0.96 + 0.05 * grain(x * 60, y * 12, own("phase")))[:, None]
    )
    albedo = _brows(albedo, y, far, z, own)
    albedo = _scalp(albedo, place, own)
    albedo = _over(albedo, (0.45 + 0.45 * own("lash")) * step(0.2, 0.7, rim), own("hair") * 0.15)
    wrap = 0.28
    soft = ((light.key + wrap) / (1 + wrap)).clamp(0, 1)
    red = ((light.key + 0.48) / 1.48).clamp(0, 1)
    lit = torch.stack([red * 0.45 + soft * 0.55, soft, soft * 0.97 + 0.01], -1)
    shade = (1 - 0.75 * cavity.clamp(0, 1))[:, None]
    ambient = _tint(x, 0.40, 0.36, 0.37) * (0.55 + 0.55 * light.sky)[:, None]
    colour = albedo * (ambient + 0.74 * lit) * shade
    pores = 1 + 0.12 * torch.sin(x * 211 + 5 * torch.sin(y * 67)) * torch.sin(
        y * 183 + 4 * torch.sin(x * 91)
    )
    oily = (0.5 + 0.5 * hill(far, 0.2)) * pores
    fresnel = (1 - light.facing) ** 4
    colour = colour + (0.10 * oily * light.half**18 * (1 - 0.7 * cavity))[:, None]
    colour = colour + (0.20 * fresnel * (0.3 + own("rim")) * light.sky)[:, None] * (
        0.4 + 0.6 * albedo
    )
    wet = lip * (0.06 + 0.34 * own("gloss")) * light.half**38
    colour = colour + wet[:, None]
    deep = step(0.35, 0.75, inside) * step(0.40, 0.30, lip)
    dark = _tint(x, 0.20, 0.055, 0.055) * (0.25 + 0.75 * step(-0.15, 0.30, z))[:, None]
    return _over(colour, deep, dark)


def _complexion(x: Tensor, y: Tensor, far: Tensor, ears: Tensor, lids: Tensor, own: Own) -> Tensor:
    base = own("skin")
    phase = own("phase")
    mottle = 0.5 * grain(x * 9, y * 9, phase) + 0.5 * grain(x * 23, y * 23, phase + 1)
    albedo = base * (1 + 0.030 * mottle)[:, None]
    rosy = _tint(x, 1.0, 0.76, 0.74)
    cheeks = hill(far - 0.40, 0.20) * hill(y + 0.36, 0.20)
    nose = 0.8 * hill(x, 0.14) * hill(y + 0.38, 0.12)
    flush = (cheeks + nose) * (0.25 + 0.55 * own("blush")) + 0.5 * ears
    albedo = _over(albedo, flush.clamp(0, 1) * 0.8, albedo * rosy)
    under = hill(far - 0.27, 0.13) * hill(y + 0.17, 0.05) * (0.08 + 0.16 * own("bag"))
    albedo = _over(albedo, under, albedo * _tint(x, 0.80, 0.66, 0.70))
    painted = lids * own("shadow") * step(-0.02, 0.06, y)
    albedo = _over(albedo, 0.18 * lids, albedo * _tint(x, 0.90, 0.74, 0.74))
    albedo = _over(albedo, 0.5 * painted, own("cloth2") * 0.5 + albedo * 0.35)
    spots = step(0.38, 0.62, grain(x * 46, y * 46, phase))
    freckled = spots * hill(far - 0.2, 0.3) * hill(y + 0.3, 0.18) * own("freckles")
    return _over(albedo, 0.4 * freckled, albedo * _tint(x, 0.78, 0.6, 0.5))


def _brows(albedo: Tensor, y: Tensor, far: Tensor, z: Tensor, own: Own) -> Tensor:
    u = (far - 0.315) / 0.205
    middle = 0.185 + 0.05 * own("brow_arch") * (0.5 - (u - 0.25) ** 2) + 0.14 * own("brow_tilt") * u
    thick = (
        (0.020 + 0.75 * own("brow_thick")) * (1 - 0.62 * step(0.0, 1.0, u)) * step(-1.15, -0.7, u)
    )
    strokes = 0.5 + 0.5 * torch.sin((far * 1.1 + (y - middle) * (0.4 - 1.1 * u.clamp(-1, 0))) * 210)
    edge = (y - middle).abs() / (thick + 1e-3)
    cover = step(1.15, 0.55, edge + 0.25 * strokes) * step(1.1, 0.85, u.abs()) * (z > -0.35)
    colour = own("hair") * 0.55 + albedo * 0.06
    return _over(albedo, cover * (0.62 + 0.3 * strokes), colour)


def _beard(albedo: Tensor, x: Tensor, y: Tensor, far: Tensor, z: Tensor, own: Own) -> Tensor:
    phase = own("phase")
    fuzz = 0.035 * grain(x * 22, y * 22, phase)
    goatee = step(0.45, 0.3, own("beard_shape"))
    line = -0.50 + 0.30 * step(0.25, 0.62, far) - 0.06 * hill(far - 0.3, 0.12)
    jaw = step(0.07, -0.12, y - line + fuzz) * step(-1.14, -0.92, y) * step(-0.62, -0.42, z)
    jaw = jaw * mix(torch.ones_like(far), step(0.32, 0.20, far + fuzz), goatee)
    mouth = (x / 0.30) ** 2 + ((y + 0.615) / 0.125) ** 2
    clear = step(0.75, 1.2, mouth + 2 * fuzz)
    tache = step(0.33, 0.22, far) * step(-0.60, -0.535, y) * step(-0.425, -0.47, y + 0.25 * far)
    cover = torch.maximum(
        jaw * clear, tache * torch.maximum(own("moustache"), 0.5 * own("stubble"))
    )
    hairs = 0.62 + 0.4 * torch.sin(x * 311 + 5 * torch.sin(y * 97)) * torch.sin(
        y * 233 + 4 * torch.sin(x * 131)
    )
    strength = torch.maximum(
        0.20 * own("stubble"), (own("beard") > 0) * (0.22 + 0.5 * own("beard"))
    )
    return _over(
        albedo, (cover * strength * hairs).clamp(0, 0.95), own("hair") * 0.6 + albedo * 0.05
    )


def _scalp(albedo: Tensor, place: Tensor, own: Own) -> Tensor:
    """Hair's own colour under the locks, so that no skin shines through."""
    x, y, _ = place.unbind(1)
    azimuth, height = hair_coordinates(place)
    above = (
        height - scalp_edge(azimuth) + own("hairline") + 0.03 * grain(x * 30, y * 30, own("phase"))
    )
    cover = step(0.0, 0.09, above) * own("grown") * 0.9
    return _over(albedo, cover, own("hair") * 0.62)


def clothes(colour: Tensor, place: Tensor, light: Lamp, own: Own) -> Tensor:
    """The garment laid over skin from the neckline down."""
    x, y, _ = place.unbind(1)
    low = y - neckline(place, own("collar"))
    cover = step(0.012, -0.012, low)
    bands = step(-0.2, 0.2, torch.sin(y * 26)) * (own("pattern") > 1.5)
    cloth = mix(own("cloth"), own("cloth2"), (0.8 * bands)[:, None])
    cloth = mix(cloth, own("cloth2") * 0.8, (step(-0.085, -0.07, low))[:, None])
    weave = 1 + 0.05 * grain(x * 60, y * 60, own("phase")) - 0.25 * hill(low + 0.078, 0.012)
    lit = 0.42 + 0.12 * light.sky + 0.62 * light.key.clamp(min=0)
    return _over(colour, cover, cloth * (lit * weave)[:, None])


def neckline(place: Tensor, collar: Tensor) -> Tensor:
    """Height of the garment's edge around the neck at canonical places [..., 3]."""
    x, z = place[..., 0], place[..., 2]
    crew = -1.46 - 0.16 * step(-0.7, -0.1, z)
    vee = -1.44 - 0.42 * step(0.42, 0.0, x.abs()) * step(-0.6, -0.2, z)
    high = -1.22 - 0.10 * step(-0.7, -0.1, z)
    line = torch.where(collar < 1.5, crew, vee)
    return torch.where(collar > 2.5, high, line)


def eye(spot: Tensor, light: Lamp, own: Own) -> Tensor:
    """Eyeball [K, 3]; `spot` [K, 3] is the place on the unit ball, turned back by the gaze."""
    x, y, z = spot.unbind(1)
    r = torch.sqrt(x * x + y * y + 1e-9)
    size = 0.50 + 1.4 * (own("iris") - 0.084)
    part = r / size
    angle = torch.atan2(y, x)
    rays = 0.5 * torch.sin(angle * 19 + own("phase") * 3) + 0.5 * torch.sin(
        angle * 37 - own("phase")
    )
    veins = step(0.45, 0.9, r) * 0.10
    white = _tint(x, 0.93, 0.915, 0.905) * (1 - 0.16 * step(0.55, 0.95, r))[:, None]
    white = _over(white, veins, _tint(x, 0.85, 0.55, 0.50) + 0 * white)
    glow = 0.75 + 0.55 * step(0.25, 0.95, part) * step(0.5, -0.9, y / size) + 0.14 * rays
    iris = own("iris_colour") * (glow * (1 - 0.65 * step(0.76, 1.0, part)) * 1.25)[:, None]
    colour = _over(white, 0.4 * step(1.2, 0.98, part), own("iris_colour") * 0.3)
    colour = _over(colour, step(1.03, 0.95, part) * (z > 0), iris)
    colour = _over(
        colour, step(0.46, 0.40, part) * (z > 0), _tint(x, 0.02, 0.018, 0.02) + 0 * colour
    )
    lid = step(0.62, 0.10, y)  # the upper lid and its lashes keep light away
    lit = 0.50 + 0.16 * light.sky + 0.42 * light.key.clamp(min=0)
    return colour * (lit * (0.52 + 0.48 * lid))[:, None]


def catchlights(normal: Tensor, own: Own) -> Tensor:
    """The window that eyes mirror, 0..1 [K]; `normal` [K, 3] of the ball before the viewer."""
    side = torch.sign(own("light_x") + 1e-6)
    x, y = normal[:, 0] - 0.20 * side, normal[:, 1] - 0.22
    main = step(0.105, 0.075, torch.sqrt(x * x + y * y + 1e-9))
    x, y = normal[:, 0] + 0.17 * side, normal[:, 1] + 0.20
    return main + 0.30 * step(0.08, 0.04, torch.sqrt(x * x + y * y + 1e-9))


def tooth(place: Tensor, light: Lamp, own: Own, upper: Tensor) -> Tensor:
    """Teeth [K, 3] with gaps between them; dark towards the back."""
    x, _, z = place.unbind(1)
    white = _tint(x, 0.90, 0.87, 0.80) + (0.05 * own("teeth_white"))[:, None]
    wide = torch.where(upper > 0.5, 0.085, 0.058)
    gap = (x / wide - torch.round(x / wide)).abs() * wide
    grooves = 1 - 0.30 * hill(gap, 0.006)
    back = 0.35 + 0.65 * step(0.0, 0.28, z)
    lit = 0.80 + 0.22 * light.key.clamp(min=0) + 0.10 * light.sky
    return white * (lit * grooves * back)[:, None]


def tongue(place: Tensor, light: Lamp, own: Own) -> Tensor:
    x, _, z = place.unbind(1)
    pink = _tint(x, 0.78, 0.38, 0.38)
    lit = (0.35 + 0.45 * light.key.clamp(min=0) + 0.15 * light.sky) * (
        0.4 + 0.6 * step(-0.1, 0.25, z)
    )
    wet = 0.14 * light.half**24
    return pink * (lit * (1 - 0.2 * hill(x, 0.02)))[:, None] + (wet * own("gloss"))[:, None]


def strand(along: Tensor, outward: Tensor, where: Tensor, own: Own) -> Tensor:
    """Hair [K, 3]: tangent and outward direction [K, 3], place on the lock [K, 3].

    The place is 0 at the root to 1 at the tip, -1..1 across, and the lock's own brightness.
    """
    depth, across, tone = where.unbind(1)
    tone = tone * (1 + 0.13 * torch.sin(across * 7 + tone * 60) + 0.08 * torch.sin(across * 17))
    x, y = own("light_x") * 0.85, -own("light_y")
    toward = torch.stack([x, y + 0.35, torch.full_like(x, 0.8)], -1)
    toward = toward / toward.norm(dim=1, keepdim=True)
    lit = 0.5 + 0.5 * (outward * toward).sum(1)
    bisector = toward + torch.tensor([0.0, 0.0, 1.0], device=x.device)
    bisector = bisector / bisector.norm(dim=1, keepdim=True)
    tilt = (along * bisector).sum(1) + 0.12 * (tone - 1)
    shine = (1 - tilt * tilt).clamp(0, 1) ** 24
    edge = 0.62 + 0.38 * step(0.0, 0.30, depth)
    base = own("hair") * (tone * edge * (0.34 + 0.78 * lit))[:, None]
    gleam = 0.16 * shine * (0.2 + 0.8 * lit) * edge
    shown: Tensor = base + gleam[:, None] * (0.30 + 0.9 * own("hair"))
    return shown


def _over(under: Tensor, cover: Tensor, colour: Tensor) -> Tensor:
    return under + (colour - under) * cover[:, None]


def _tint(like: Tensor, r: float, g: float, b: float) -> Tensor:
    return torch.tensor([[r, g, b]], device=like.device)
