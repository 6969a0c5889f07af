"""Hair of the human family: thousands of ribbons that grow from the scalp and fall around the head.

Each root sends out a lock that is combed, pulled down, curled and kept outside the head. Roots,
number of locks and of joints are the same for everybody, so hair is one more mesh of one topology.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.faces.draw import between, uniform
from training.data.faces.human.template import (
    ROOTS,
    SKULL,
    hair_coordinates,
    scalp_edge,
    template,
    vertices_of,
)
from training.data.faces.human.visible import seen_triangles
from training.data.faces.paint import mix, step

JOINTS = 12
_ROWS, _COLUMNS = 16, 32  # of the table of the head's radius by direction


class _Style(NamedTuple):
    """A way to wear hair; lengths in decimetres."""

    top: float  # length of hair on top
    side: float  # length on the sides
    back: float  # length behind
    lift: float  # how far roots stand up, 0 lies flat, 1 stands
    forward: float  # combed to the front (negative: back)
    aside: float  # combed away from the part
    part: float  # where the part is
    gravity: float
    curl: float  # radius of curls
    volume: float  # thickness of the whole
    hairline: float  # how much lower (positive) or higher the hairline is
    by_women: float
    by_men: float


_STYLES = (
    _Style(0.10, 0.05, 0.05, 0.10, 0.5, 0.0, 0.0, 0.1, 0.000, 0.02, 0.0, 0.02, 0.16),  # buzz
    _Style(0.46, 0.12, 0.10, 0.08, 0.6, 0.8, 0.25, 0.3, 0.004, 0.07, 0.0, 0.00, 0.20),  # side part
    _Style(0.42, 0.09, 0.09, 0.40, -0.9, 0.2, 0.15, 0.1, 0.006, 0.10, 0.0, 0.00, 0.16),  # quiff
    _Style(0.48, 0.20, 0.16, 0.08, 0.9, 0.3, 0.10, 0.5, 0.014, 0.10, 0.03, 0.03, 0.14),  # tousled
    _Style(0.26, 0.20, 0.16, 0.04, 0.2, 0.3, 0.00, 0.3, 0.055, 0.14, 0.0, 0.06, 0.12),  # curls
    _Style(0.26, 0.22, 0.18, 0.02, 0.0, 0.0, 0.00, 0.0, 0.060, 0.26, 0.0, 0.07, 0.05),  # afro
    _Style(1.15, 0.85, 0.85, 0.05, 0.1, 1.2, 0.12, 1.2, 0.006, 0.09, 0.0, 0.18, 0.00),  # bob
    _Style(2.00, 1.80, 1.80, 0.05, 0.0, 1.2, 0.00, 1.2, 0.008, 0.09, 0.0, 0.22, 0.02),  # long
    _Style(1.90, 1.70, 1.70, 0.10, 0.0, 1.2, 0.22, 1.1, 0.040, 0.13, 0.0, 0.18, 0.00),  # waves
    _Style(0.95, 0.60, 0.20, 0.02, -1.6, 0.0, 0.00, 0.0, 0.003, 0.05, 0.0, 0.14, 0.02),  # tied back
    _Style(0.70, 0.90, 0.90, 0.05, 1.0, 0.1, 0.00, 1.0, 0.006, 0.08, 0.04, 0.12, 0.02),  # fringe
    _Style(0.12, 0.11, 0.10, 0.08, 0.0, 0.2, 0.00, 0.3, 0.002, 0.03, -0.22, 0.00, 0.06),  # receding
    _Style(0.01, 0.01, 0.01, 0.10, 0.0, 0.0, 0.00, 0.0, 0.000, 0.00, -1.00, 0.00, 0.06),  # none
)  # fmt: skip
_TIED, _NONE = 9, len(_STYLES) - 1


class Hair(NamedTuple):
    """The hair of N identities as loose triangles, 3 * KEPT vertices P each."""

    vertices: Tensor  # [N, P, 3]
    look: Tensor  # [N, P, 9]: growth (3), outward (3), 0 root to 1 tip, -1..1 across, brightness
    edge: Tensor  # [N], how much lower the hairline is
    grown: Tensor  # [N], 1 where there is hair at all


@cache
def lock_faces() -> Tensor:
    """Triangles int64 [F, 3] of all ribbons, numbered from their own first vertex."""
    lock = torch.arange(ROOTS)[:, None] * JOINTS * 2
    joint = torch.arange(JOINTS - 1)[None] * 2
    a = lock + joint
    quads = torch.stack([a, a + 1, a + 2, a + 1, a + 3, a + 2], -1)
    return quads.reshape(-1, 3)


def draw_styles(seed: Tensor, masculine: Tensor) -> dict[str, Tensor]:
    """The numbers of each identity's style, by name, [N]."""
    table = torch.tensor([list(style) for style in _STYLES])
    shares = table[:, -2:].T / table[:, -2:].sum(0)[:, None]
    ladder = shares.cumsum(1)[(masculine > 0.5).long()]
    worn = (uniform(seed, "locks")[:, None] > ladder[:, :-1]).sum(1)
    numbers = {name: table[worn, k] for k, name in enumerate(_Style._fields)}
    for name in ("top", "side", "back", "volume", "curl"):
        numbers[name] = numbers[name] * between(seed, "lock " + name, 0.85, 1.2)
    flip = torch.where(uniform(seed, "lock flip") < 0.5, -1.0, 1.0)
    numbers["part"] = numbers["part"] * flip + between(seed, "lock part", -0.05, 0.05)
    numbers["density"] = (0.42 / (numbers["top"] + 0.01)).clamp(0.3, 1)
    numbers["cling"] = (1 - numbers["lift"]).clamp(0, 1)
    numbers["grown"] = (worn != _NONE).float()
    numbers["tied"] = (worn == _TIED).float()
    return numbers


def grow(seed: Tensor, masculine: Tensor, neutral: Tensor) -> Hair:
    """Grow hair on neutral heads [N, V, 3]."""
    t, style = template(), draw_styles(seed, masculine)
    s = {name: value[:, None] for name, value in style.items()}
    roots = (neutral[:, t.roots] * t.root_weights[..., None]).sum(2)  # [N, R, 3]
    middle = torch.tensor(SKULL)
    azimuth, height = hair_coordinates(t.root_place)
    number = torch.arange(ROOTS)
    luck = uniform(seed[:, None], "lock", number)
    keep = height[None] > scalp_edge(azimuth)[None] - s["hairline"] + 0.05 * (luck - 0.5)
    keep = keep * (uniform(seed[:, None], "dense", number) < s["density"])
    length = _lengths(azimuth, height, s) * (0.72 + 0.45 * luck) * keep
    layer = uniform(seed[:, None], "layer", number)
    heading = _combed(roots - middle, azimuth, height, s, seed, number)
    joints = [roots]
    table = _radii(neutral, middle)
    direction = heading
    for k in range(1, JOINTS):
        pull = torch.zeros_like(direction)
        pull[..., 1] = -s["gravity"] * (0.25 + 0.75 * k / JOINTS)
        pull[..., 2] = -0.9 * s["tied"] * (k > 2)
        hanging = 0.55 + 0.9 * step(0.1, -0.3, joints[-1][..., 1:2])
        direction = F.normalize(direction + hanging * pull, dim=-1)
        out = F.normalize(joints[-1] - middle, dim=-1)
        rising = (direction * out).sum(-1, keepdim=True).clamp(min=0)
        free = step(0.15, -0.25, joints[-1][..., 1]) * step(0.25, 0.5, s["side"])
        flat = s["cling"] * (1 - free)  # what hangs free does not cling
        direction = F.normalize(direction - rising * out * flat[..., None], dim=-1)
        at = joints[-1] + direction * (length / (JOINTS - 1))[..., None]
        puff = s["volume"] * (0.25 + 0.9 * layer) * min(1.0, k / 2)
        at = _outside(at, middle, table, puff, 0.56 + 0.24 * step(0.25, 0.7, s["side"]))
        at = _off_the_face(at, s)
        direction = F.normalize(at - joints[-1] + 1e-6, dim=-1)
        joints.append(at)
    line = _curled(torch.stack(joints, 2), s, seed, number, length)
    vertices, look = _ribbons(line, middle, length, s)
    tone = 0.86 + 0.28 * uniform(seed[:, None], "lock tone", number)
    look = torch.cat([look, tone.repeat_interleave(JOINTS * 2, 1)[..., None]], -1)
    kept = lock_faces()[seen_triangles(neutral, vertices, lock_faces())].flatten(1)[..., None]
    return Hair(
        vertices.gather(1, kept.expand(-1, -1, 3)),
        look.gather(1, kept.expand(-1, -1, 9)),
        style["hairline"],
        style["grown"],
    )


def _lengths(azimuth: Tensor, height: Tensor, s: dict[str, Tensor]) -> Tensor:
    """Length [N, R] of each lock."""
    on_side = step(0.78, 0.45, height)
    behind = step(1.5, 2.1, azimuth)
    low = s["side"] + (s["back"] - s["side"]) * behind
    return s["top"] + (low - s["top"]) * on_side


def _combed(
    away: Tensor,
    azimuth: Tensor,
    height: Tensor,
    s: dict[str, Tensor],
    seed: Tensor,
    number: Tensor,
) -> Tensor:
    """First direction [N, R, 3] of the locks."""
    out = F.normalize(away, dim=-1)
    from_part = away[..., 0] - s["part"] + 0.16 * (uniform(seed[:, None], "parting", number) - 0.5)
    top = step(0.35, 0.75, height)
    comb = torch.stack(
        [
            s["aside"] * torch.tanh(4 * from_part) * (0.4 + 0.6 * top),
            -(1 - top) * (1 - s["tied"]) - 0.15 * s["aside"] + 0.25 * s["tied"],
            s["forward"] * (0.25 + 0.75 * top) - 0.25 * step(1.2, 2.0, azimuth),
        ],
        -1,
    )
    stray = torch.stack([uniform(seed[:, None], f"stray {k}", number) - 0.5 for k in range(3)], -1)
    comb = comb + (0.35 + 45 * s["curl"] * (s["top"] < 0.5))[..., None] * stray
    comb = comb - (comb * out).sum(-1, keepdim=True) * out
    return F.normalize(comb + s["lift"][..., None] * out * 0.9 + 1e-6, dim=-1)


def _radii(neutral: Tensor, middle: Tensor) -> Tensor:
    """The head's radius by direction [N, 1, _ROWS, _COLUMNS], seen from the skull's middle."""
    t = template()
    own = vertices_of(t.head, 0)
    solid = own[(t.place[own, 1] > -0.45) & (t.head.masks["ears"][own] < 0.3)]
    away = neutral[:, solid] - middle
    radius = away.norm(dim=-1)
    row, column = _direction(away / radius[..., None])
    cell = (row * (_ROWS - 1)).round() * _COLUMNS + (column * _COLUMNS).floor().clamp(
        max=_COLUMNS - 1
    )
    table = torch.zeros(len(neutral), _ROWS * _COLUMNS)
    table.scatter_reduce_(1, cell.long(), radius, "amax")
    table = table.reshape(-1, 1, _ROWS, _COLUMNS)
    for _ in range(4):  # directions that no vertex has take their neighbours' radius
        padded = F.pad(F.pad(table, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1), mode="replicate")
        table = torch.where(table > 0, table, F.max_pool2d(padded, 3, 1))
    padded = F.pad(F.pad(table, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, 1)


def _direction(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column in 0..1 of unit vectors [..., 3]."""
    row = torch.acos(unit[..., 1].clamp(-1, 1)) / torch.pi
    return row, torch.atan2(unit[..., 0], unit[..., 2]) / (2 * torch.pi) + 0.5


def _outside(at: Tensor, middle: Tensor, table: Tensor, puff: Tensor, wide: Tensor) -> Tensor:
    """Push places [N, R, 3] out of the head, to `puff` above it; below the ears, off the neck."""
    away = at - middle
    radius = away.norm(dim=-1, keepdim=True)
    row, column = _direction(away / radius)
    wrapped = F.pad(table, (1, 1, 0, 0), mode="circular")
    x = (column * _COLUMNS + 1) / (_COLUMNS + 2) * 2 - 1
    grid = torch.stack([x, row * 2 - 1], -1)[:, None]
    least = F.grid_sample(wrapped, grid, align_corners=False, padding_mode="border")[:, 0, 0]
    grown = torch.maximum(torch.ones_like(radius), (least + puff + 0.012)[..., None] / radius)
    on_skull = middle + away * grown
    level = away * torch.tensor([1.0, 0.0, 1.0])
    reach = level.norm(dim=-1, keepdim=True) + 1e-4
    neck = wide - 0.14 * step(-0.55, -1.0, at[..., 1]) + 0.7 * puff
    beside = at + level * (torch.maximum(reach, neck[..., None]) / reach - 1)
    share = step(-0.40, -0.10, at[..., 1])[..., None]
    return mix(beside, on_skull, share)


def _off_the_face(at: Tensor, s: dict[str, Tensor]) -> Tensor:
    """Keep eyes, nose and mouth free: hair in front of the face goes to the sides."""
    x, y, z = at.unbind(-1)
    front = step(-0.45, -0.2, z)
    long = step(0.5, 0.8, s["top"])
    free = 0.62 * step(0.66, 0.12, y) * front * long
    side = torch.where(x - s["part"] * (y > 0.2) < 0, -1.0, 1.0)
    moved = side * torch.maximum(x * side, free)
    return torch.stack([moved, y, z - 0.25 * (moved - x).abs()], -1)


def _curled(
    line: Tensor, s: dict[str, Tensor], seed: Tensor, number: Tensor, length: Tensor
) -> Tensor:
    """Locks [N, R, J, 3] wound about their own direction."""
    along = torch.linspace(0, 1, JOINTS) * length[..., None]
    clump = (number // 3).float()
    phase = 6.28 * uniform(seed[:, None], "curl", clump.long())[..., None]
    turn = along * (9.0 + 8.0 * (s["curl"] > 0.03)[..., None]) + phase
    reach = s["curl"][..., None] * (torch.linspace(0, 1, JOINTS) ** 0.5)
    shift = torch.stack(
        [turn.sin() * reach, (turn * 0.7).cos() * reach * 0.5, turn.cos() * reach], -1
    )
    return line + shift


def _ribbons(
    line: Tensor, middle: Tensor, length: Tensor, s: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Ribbons about the lines, facing away from the head, thin at the tip: places and looks."""
    ends = 2 * line[:, :, -1:] - line[:, :, -2:-1]
    along = F.normalize(torch.diff(line, dim=2, append=ends), dim=-1)
    out = F.normalize(line - middle, dim=-1)
    across = F.normalize(torch.linalg.cross(along + 1e-5, out), dim=-1)
    taper = torch.linspace(0, 1, JOINTS)
    taper = (1 - taper**3) * 0.9 + 0.1
    wide = (
        0.012 / s["density"].sqrt() * (1 + 0.5 * step(0.7, 1.0, s["side"]))
        + 0.006 * s["curl"] / 0.05
    )
    half = wide * (length > 0.004)
    offset = across * (half[..., None] * taper)[..., None]
    places = torch.stack([line - offset, line + offset], 3).flatten(1, 3)
    depth = torch.linspace(0, 1, JOINTS)[:, None].expand(*line.shape[:3], 1)
    look = torch.cat([along, out, depth], -1).repeat_interleave(2, 2).flatten(1, 2)
    edges = torch.tensor([-1.0, 1.0]).repeat(look.shape[1] // 2)[:, None].expand(len(look), -1, 1)
    return places, torch.cat([look, edges], -1)
