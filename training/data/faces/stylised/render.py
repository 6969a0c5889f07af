"""The stylised head, drawn: one closed formula from (traits, expression) to a picture.

Pure torch without branches on data, so it runs batched on any device and under `torch.compile`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.paint import ellipse, fill, hill, over, slopes, step, unit
from training.data.faces.stylised.dress import draw_body, draw_ears, draw_glasses
from training.data.faces.stylised.eyes import draw_brows, draw_eyes, trace_lids
from training.data.faces.stylised.hair import draw_hair, lay_back, lay_fall, lay_front
from training.data.faces.stylised.head import Grid, Skin, grid, see
from training.data.faces.stylised.landmarks import face_box, lip_lines
from training.data.faces.stylised.mouth import MouthMaps, colour_lips, gap, interior, trace
from training.data.faces.stylised.scene import draw_lights, draw_scene
from training.data.faces.stylised.skin import Light, cast, complexion, polish, shade
from training.data.faces.stylised.traits import Traits, draw_traits
from training.data.faces.truth import LipLines


class Stylised:
    """The renderer of the family; see `family.Renderer`."""

    def traits(self, seed: Tensor) -> Traits:
        traits = draw_traits(seed)
        return traits | draw_hair(seed, traits["masculine"]) | {"lights": draw_lights(seed)}

    def draw(self, traits: Traits, expression: Expression, size: int) -> Tensor:
        t = {name: _spread(name, value) for name, value in traits.items()}
        e = expression.map(lambda field: field[:, None, None])
        g = grid(size, e, t)
        skin = see(g, t, e)
        picture = draw_scene(size, t)
        picture = lay_back(picture, g, t, e)
        picture = draw_body(picture, g, t, e)
        picture = lay_fall(picture, g, t, e)
        picture = draw_ears(picture, g, t, e)
        return _head(picture, g, skin, t, e)

    def landmarks(self, traits: Traits, expression: Expression) -> tuple[LipLines, Tensor]:
        t = {name: value[:, None] for name, value in traits.items() if value.dim() == 1}
        e = expression.map(lambda field: field[:, None])
        return lip_lines(t, e), face_box(t, e)

    def frames_at_once(self, device: torch.device) -> int:
        return 4 if device.type == "cpu" else 64


def _spread(name: str, value: Tensor) -> Tensor:
    """Numbers to [N, 1, 1], colours to [N, 3, 1, 1]."""
    if name == "lights":
        return value
    return value[:, None, None] if value.dim() == 1 else value[:, :, None, None]


def _head(picture: Tensor, g: Grid, skin: Skin, t: Traits, e: Expression) -> Tensor:
    front = lay_front(g, skin, t, e)
    mouth = trace(skin, t, e, g.pixel)
    normal = _lipped(skin, mouth, g.pixel)
    light = cast(skin, normal, t, front.shade)
    albedo = complexion(skin, t, e, t["hair"])
    face = shade(albedo, light)
    face = _nostrils(face, skin, t, e, g.pixel)
    face = draw_eyes(face, skin, trace_lids(skin, t, e), t, e, g.pixel)
    face = draw_brows(face, skin, t, e, g.pixel)
    face = _mouth(face, skin, mouth, light, t, e, g.pixel)
    head = fill(skin.silhouette, g.pixel)
    edge = (skin.silhouette - 0.012).clamp(min=-1)
    picture = over(picture, fill(edge, g.pixel) * t["outline"], t["skin"] * 0.12)
    picture = over(picture, head, face)
    picture = over(picture, front.cover, front.colour)
    return draw_glasses(picture, skin, t, e, head, g.pixel).clamp(0, 1)


def _lipped(skin: Skin, mouth: MouthMaps, pixel: Tensor) -> Tensor:
    """Normals with the roundness of the lips added."""
    dy, dx = slopes(mouth.relief)
    bend = torch.stack([-dx / pixel, -dy / pixel, torch.zeros_like(dx)], 1) * mouth.lips[:, None]
    normal = skin.normal + 0.8 * bend
    return unit(normal)


def _mouth(
    face: Tensor, skin: Skin, m: MouthMaps, light: Light, t: Traits, e: Expression, px: Tensor
) -> Tensor:
    below = hill(skin.y - m.shape.lower_out - 0.035, 0.030) * step(1.0, 0.2, m.u.abs())
    face = over(face, 0.20 * below, t["skin"] * 0.42)
    corner = hill(m.u.abs() - 1.03, 0.055) * hill(skin.y - m.shape.upper_in, 0.020)
    face = over(face, 0.34 * corner, t["skin"] * 0.32)
    face = polish(colour_lips(face, m, t, 0.55 + 0.5 * light.lit), light, m, skin, t)
    shut = 1 - step(0.0, 0.02, gap(e))
    line = hill(skin.y - m.shape.upper_in, 0.0075) * step(1.04, 0.93, m.u.abs())
    face = over(face, 0.75 * line * shut * (skin.front > 0), t["lip"] * 0.32)
    inner = interior(skin, m, t, e, px)
    roof = step(0.022, 0.0, skin.y - m.shape.upper_in)
    return over(face, m.inside, inner * (1 - 0.30 * roof)[:, None])


def _nostrils(face: Tensor, skin: Skin, t: Traits, e: Expression, px: Tensor) -> Tensor:
    far = skin.x.abs() - 0.50 * t["nose_width"]
    down = skin.rest_y - t["nose_y"] - 0.042
    hole = ellipse(far, down + 0.25 * far, 0.030, 0.0135 * (1 - 0.8 * e.pitch))
    face = over(face, 0.72 * t["nostril"] * fill(hole, 2.2 * px), t["skin"] * 0.24)
    under = hill(skin.x, 0.75 * t["nose_width"]) * hill(skin.rest_y - t["nose_y"] - 0.058, 0.018)
    return over(face, 0.22 * under, t["skin"] * 0.42)
