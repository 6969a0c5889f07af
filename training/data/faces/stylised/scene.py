"""What is behind a stylised character: walls, blurred rooms, lights out of focus."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.faces.draw import uniform
from training.data.faces.paint import box, fill, grain, mix, over, step
from training.data.faces.stylised.traits import Traits

_LIGHTS = 7


def draw_lights(seed: Tensor) -> Tensor:
    """Places, sizes and tints [N, K, 4] in 0..1 of the blurred lights behind a character."""
    cells = torch.arange(_LIGHTS * 4)
    return uniform(seed[:, None], "lights", cells).reshape(len(seed), _LIGHTS, 4)


def draw_scene(size: int, t: Traits) -> Tensor:
    """Background [B, 3, size, size]."""
    line = (torch.arange(size, device=t["width"].device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    x, y = x[None], y[None]
    kind = t["scene"]
    slant = (0.5 + 0.42 * y + 0.25 * x * t["light_x"]).clamp(0, 1)
    plain = mix(t["wall1"] * 1.05, t["wall1"] * 0.62 + 0.1 * t["wall2"], slant[:, None])
    glow = torch.exp(-((x - 0.9 * t["light_x"]) ** 2 + (y + 0.55) ** 2) * 1.6)
    picture = plain + (0.16 * glow)[:, None]
    picture = torch.where((kind > 2.5)[:, None], _room(picture, x, y, t), picture)
    lights = ((kind > 1.5) & (kind < 2.5)).float()
    for k in range(_LIGHTS):
        spot = t["lights"][:, k, :, None, None].unbind(1)
        r = torch.sqrt((x - spot[0] * 2 + 1) ** 2 + (y - spot[1] * 1.7 + 1) ** 2 + 1e-9)
        disc = fill(r - 0.08 - 0.2 * spot[2], torch.full_like(kind, 0.05)) * (0.10 + 0.22 * spot[3])
        picture = over(
            picture, disc * lights, mix(t["wall2"], torch.ones_like(t["wall2"]), spot[3][:, None])
        )
    patch = grain(x * 2.2 + t["phase"], y * 2.2, t["phase"]) * ((kind > 0.5) & (kind < 1.5))
    picture = picture * (1 + 0.07 * patch)[:, None]
    vignette = 1 - 0.20 * step(0.9, 1.9, x * x + y * y)
    return (picture * vignette[:, None]).clamp(0, 1)


def _room(wall: Tensor, x: Tensor, y: Tensor, t: Traits) -> Tensor:
    """A window or picture and a shelf, out of focus."""
    side = torch.sign(t["light_x"] + 1e-6)
    blur = torch.full_like(t["wall"], 0.07)
    pane = box(x - side * 0.78, y + 0.45, 0.34 + 0.1 * t["wall"], 0.42, 0.03)
    wall = over(wall, fill(pane - 0.04, blur), wall * 0.72)
    wall = over(wall, fill(pane, blur), 0.55 * t["wall2"] + 0.45)
    shelf = box(x + side * 0.85, y + 0.15 + 0.3 * t["wall"], 0.45, 0.03, 0.01)
    books = step(-0.3, 0.3, torch.sin(x * 31 + t["phase"])) * 0.5
    row = box(x + side * 0.85, y + 0.33 + 0.3 * t["wall"], 0.30, 0.13, 0.02)
    wall = over(wall, 0.75 * fill(row, blur), mix(t["cloth2"], t["wall2"] * 0.6, books[:, None]))
    return over(wall, 0.85 * fill(shelf, blur), wall * 0.5)
