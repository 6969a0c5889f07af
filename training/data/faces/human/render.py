"""The human family, drawn: pose, rasterise twice as fine as asked, light, and average down."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.faces.draw import between, uniform
from training.data.faces.expression import Expression
from training.data.faces.family import Traits
from training.data.faces.human import light as paintbox
from training.data.faces.human.act import Stage, act, rotation
from training.data.faces.human.locks import grow
from training.data.faces.human.raster import Hits, rasterise
from training.data.faces.human.shape import draw_neutral
from training.data.faces.human.template import template
from training.data.faces.human.visible import KEPT
from training.data.faces.paint import step
from training.data.faces.stylised.scene import draw_lights, draw_scene
from training.data.faces.stylised.traits import draw_traits
from training.data.faces.truth import LipLines

_MESHES = ("neutral", "locks", "lock_look", "cavity")
_FINER = 2  # samples per pixel, each way
_SKIN, _LASHES, _HAIR = 0, 6, 7  # parts


class Human:
    """The renderer of the family; see `family.Renderer`."""

    def traits(self, seed: Tensor) -> Traits:
        looks = draw_traits(seed)
        neutral = draw_neutral(seed, looks["masculine"])
        neutral = _dressed(neutral, looks["collar"])
        hair = grow(seed, looks["masculine"], neutral)
        strong = (looks["masculine"] > 0.5).float()
        bare = looks["skin"] * torch.tensor([0.90, 0.70, 0.70])
        return looks | {
            "lights": draw_lights(seed),
            "neutral": neutral,
            "locks": hair.vertices,
            "lock_look": hair.look,
            "hairline": hair.edge,
            "grown": hair.grown,
            "lip": looks["lip"] + (bare - looks["lip"]) * (0.2 + 0.4 * strong)[:, None],
            "cavity": _cavities(neutral),
            "stubble": strong * uniform(seed, "stubble"),
            "beard": looks["beard"] * (uniform(seed, "bearded") < 0.6),
            "iris": between(seed, "iris size", 0.078, 0.092),
        }

    def draw(self, traits: Traits, expression: Expression, size: int) -> Tensor:
        stage = act(traits["neutral"], traits["locks"], expression)
        fine = size * _FINER
        device = stage.world.device
        faces, part, hollow = _mesh(device)
        scale = torch.tensor([fine, fine, 1], device=device)
        places = stage.places * scale
        solid = part != _LASHES
        hits = rasterise(places, faces[solid], fine, hollow[solid])
        colour = _lit(hits, part[solid][hits.triangle], stage, traits, expression)
        layer = torch.zeros(len(places) * fine * fine, 4, device=device)
        layer[hits.sample] = torch.cat([colour, torch.ones_like(colour[:, :1])], 1)
        layer = _lashed(layer, hits, places, faces[~solid], fine, traits)
        layer = layer.reshape(-1, fine, fine, 4).permute(0, 3, 1, 2)
        layer = F.avg_pool2d(layer, _FINER)
        scene = draw_scene(
            size, {name: _spread(value) for name, value in traits.items() if name not in _MESHES}
        )
        return (layer[:, :3] + scene * (1 - layer[:, 3:])).clamp(0, 1)

    def landmarks(self, traits: Traits, expression: Expression) -> tuple[LipLines, Tensor]:
        t = template()
        stage = act(traits["neutral"], traits["locks"][:, :0], expression)
        spots = stage.places[..., :2]
        upper = spots[:, t.lips["upper_in"]]
        lower = spots[:, t.lips["lower_in"]]
        lower = torch.stack([lower[..., 0], torch.maximum(lower[..., 1], upper[..., 1])], -1)
        lines = LipLines(spots[:, t.lips["upper_out"]], upper, lower, spots[:, t.lips["lower_out"]])
        outline = spots[:, t.outline]
        return lines, torch.cat([outline.amin(1), outline.amax(1)], -1)

    def frames_at_once(self, device: torch.device) -> int:
        return 1 if device.type == "cpu" else 32


def _spread(value: Tensor) -> Tensor:
    if value.dim() == 3:
        return value
    return value[:, None, None] if value.dim() == 1 else value[:, :, None, None]


def _mesh(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Faces of head and hair together, their parts, and whether their backs can be seen."""
    head = template().head
    locks = torch.arange(KEPT * 3).reshape(-1, 3) + len(head.vertices)
    part = torch.cat([head.part, torch.full((len(locks),), _HAIR)])
    inside = head.masks["inside-mouth"][head.faces].amax(1) > 0.4
    hollow = torch.cat([inside, torch.ones(len(locks), dtype=torch.bool)])
    return torch.cat([head.faces, locks]).to(device), part.to(device), hollow.to(device)


def _normals(world: Tensor) -> Tensor:
    """Unit normals [N, V, 3] of the head's vertices."""
    faces = template().head.faces.to(world.device)
    corner = world[:, faces]
    flat = torch.linalg.cross(corner[:, :, 1] - corner[:, :, 0], corner[:, :, 2] - corner[:, :, 0])
    normal = torch.zeros_like(world)
    for k in range(3):
        normal.index_add_(1, faces[:, k], flat)
    return F.normalize(normal, dim=-1)


def _cavities(neutral: Tensor) -> Tensor:
    """How sunken each vertex lies, [N, V]: 0 on bulges, up to 1 in sockets, nostrils and seams."""
    faces = template().head.faces
    total = torch.zeros_like(neutral)
    count = torch.zeros(neutral.shape[1])
    for i, j in ((0, 1), (1, 2), (2, 0)):
        for a, b in ((i, j), (j, i)):
            total.index_add_(1, faces[:, a], neutral[:, faces[:, b]])
            count.index_add_(0, faces[:, a], torch.ones(len(faces)))
    lean = total / count[None, :, None].clamp(min=1) - neutral
    depth = (lean * _normals(neutral)).sum(-1)
    for _ in range(2):  # spread a little, as shade does
        spread = torch.zeros_like(depth)
        for i, j in ((0, 1), (1, 2), (2, 0)):
            for a, b in ((i, j), (j, i)):
                spread.index_add_(1, faces[:, a], depth[:, faces[:, b]])
        depth = 0.5 * depth + 0.5 * spread / count.clamp(min=1)
    return step(0.0015, 0.016, depth)


def _dressed(neutral: Tensor, collar: Tensor) -> Tensor:
    """Cloth stands off the skin a little below the neckline."""
    place = template().place
    low = place[None, :, 1] - paintbox.neckline(place[None], collar[:, None])
    thick = 0.045 * step(0.01, -0.03, low)
    return neutral + _normals(neutral) * thick[..., None]


def _lit(hits: Hits, part: Tensor, stage: Stage, traits: Traits, e: Expression) -> Tensor:
    """Colour [K, 3] of every hit."""
    t = template()
    device = stage.world.device
    colour = torch.zeros(len(part), 3, device=device)
    count = len(t.place)
    normals = _normals(stage.world[:, :count])
    drawn = [t.head.masks[name] for name in ("lips", "inside-mouth", "eyelids", "ears")]
    masks = torch.stack([*drawn, t.rim], -1).to(device)
    fixed = torch.cat([t.place.to(device), masks], 1)[None].expand(len(normals), -1, -1)
    values = torch.cat([fixed, normals, traits["cavity"][..., None]], -1)

    def select(chosen: Tensor) -> tuple[Tensor, Hits]:
        rows = chosen.nonzero()[:, 0]
        return rows, Hits(
            hits.sample[rows],
            hits.picture[rows],
            hits.corners[rows],
            hits.triangle[rows],
            hits.weights[rows],
        )

    rows, on = select((part == _SKIN) | ((part >= 3) & (part <= 5)))
    seen = on.blend(values)
    place, normal = seen[:, :3], F.normalize(seen[:, 8:11], dim=1)
    own = _owner(traits, on.picture)
    light = paintbox.lamp(normal, own)
    shown = paintbox.skin(place, seen[:, 3:8], seen[:, 11], light, own)
    shown = paintbox.clothes(shown, place, light, own)
    kind = part[rows][:, None]
    teeth = paintbox.tooth(place, light, own, (kind[:, 0] == 3).float())
    shown = torch.where((kind == 3) | (kind == 4), teeth, shown)
    shown = torch.where(kind == 5, paintbox.tongue(place, light, own), shown)
    colour[rows] = shown.clamp(0, 1)
    for side, eye in ((1, t.eyes[0]), (2, t.eyes[1])):
        rows, on = select(part == side)
        colour[rows] = _eye(on, stage, traits, e, eye.to(device), side)
    rows, on = select(part == _HAIR)
    colour[rows] = _hair(on, traits, rotation(e))
    return colour


def _owner(traits: Traits, picture: Tensor) -> paintbox.Own:
    if len(traits["phase"]) == 1:
        return lambda name: traits[
            name
        ]  # one identity: broadcast instead of copying it to each hit
    return lambda name: traits[name][picture]


def _eye(on: Hits, stage: Stage, traits: Traits, e: Expression, eye: Tensor, side: int) -> Tensor:
    """Colour [K, 3] of an eyeball, drawn on a perfect ball about its middle."""
    ball = stage.world[:, eye]
    middle = (ball.amax(1) + ball.amin(1)) / 2
    radius = (ball - middle[:, None]).norm(dim=-1).mean(1)
    place = on.blend(stage.world)
    normal = F.normalize((place - middle[on.picture]) / radius[on.picture, None], dim=1)
    inward = 0.035 if side == 1 else -0.035  # both eyes meet at the viewer
    yaw = e.yaw + 0.34 * e.gaze_x - inward
    look = rotation(replace(e, yaw=yaw, pitch=e.pitch + 0.24 * e.gaze_y))
    spot = (normal[:, :, None] * look[on.picture]).sum(1)
    own = _owner(traits, on.picture)
    light = paintbox.lamp(normal, own)
    shine = paintbox.catchlights(normal, own)
    colour = paintbox.eye(spot, light, own)
    return (colour + shine[:, None]).clamp(0, 1)


def _hair(on: Hits, traits: Traits, turned: Tensor) -> Tensor:
    """Colour [K, 3] of locks, which turn with the head by `turned` [N, 3, 3]."""
    first = len(template().place)
    own_corners = Hits(on.sample, on.picture, on.corners - first, on.triangle, on.weights)
    seen = own_corners.blend(traits["lock_look"])
    turn = turned[on.picture]
    along = F.normalize((turn * seen[:, None, :3]).sum(-1), dim=1)
    out = F.normalize((turn * seen[:, None, 3:6]).sum(-1), dim=1)
    own = _owner(traits, on.picture)
    return paintbox.strand(along, out, seen[:, 6:9], own).clamp(0, 1)


def _lashed(
    layer: Tensor, hits: Hits, places: Tensor, faces: Tensor, fine: int, traits: Traits
) -> Tensor:
    """Lashes over what is behind them: dark at the root, single hairs at the tip."""
    t = template()
    found = rasterise(
        places, faces, fine, torch.ones(len(faces), dtype=torch.bool, device=faces.device)
    )
    behind = torch.full((len(layer),), 2.0, device=layer.device)
    behind[hits.sample] = hits.blend(places[..., 2:])[:, 0]
    near = found.blend(places[..., 2:])[:, 0] < behind[found.sample] + 0.02
    fixed = (
        torch.cat([t.place, t.lash[:, None]], 1).to(layer.device)[None].expand(len(places), -1, -1)
    )
    seen = found.blend(fixed)
    x, y, along = seen[:, 0], seen[:, 1], seen[:, 3]
    comb = 0.5 + 0.5 * torch.sin(x * 330)
    lash = traits["lash"][found.picture]
    upper = step(-0.01, 0.01, y)
    cover = step(0.75, 0.15, along * (1.25 - 0.45 * lash) + 0.35 * comb * along)
    cover = cover * (0.95 * upper + 0.30 * lash * (1 - upper)) * near
    old = layer[found.sample]
    ink = torch.cat([traits["hair"][found.picture] * 0.12, torch.ones_like(x)[:, None]], 1)
    layer[found.sample] = old + (ink - old) * cover[:, None]
    return layer
