"""What can be said of the human head once, for every identity: seams, lips, roots of hair.

Canonical places are those of one average adult with the middle between the eyes as origin (x to its
left, y up, z front, decimetres). Vertices keep their meaning in every identity, so a place on the
face (a brow, a beard, a neckline) is painted in canonical coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from training.data.faces.draw import uniform
from training.data.faces.human.assets import HeadData, head_data
from training.data.faces.paint import hill, step
from training.data.faces.truth import LIP_POINTS

ROOTS = 3600  # hairs (locks, rather) that a full head can have
SKULL = (0.0, 0.32, -0.62)  # its middle


@dataclass(frozen=True, slots=True)
class Template:
    """Fixed facts; tensors on the CPU."""

    head: HeadData
    place: Tensor  # [V, 3] canonical
    turning: Tensor  # [V] share of the head's rotation that a vertex follows
    eyes: tuple[Tensor, Tensor]  # vertices of the left and right eyeball
    tongue: Tensor  # vertices
    lash: Tensor  # [V] 0 at a lash's root, 1 at its tip
    rim: Tensor  # [V] 1 where upper lashes grow from the lid, falling off around
    lips: dict[str, Tensor]  # int64 [LIP_POINTS] vertices of the lips' four edges
    outline: Tensor  # int64, vertices that span the face's box
    roots: Tensor  # int64 [ROOTS, 3] vertices of the triangles that hair grows from
    root_weights: Tensor  # [ROOTS, 3]
    root_place: Tensor  # [ROOTS, 3] canonical


@cache
def template() -> Template:
    head = head_data()
    place = head.vertices + head.macro["caucasian-female-young"]
    place = place + head.macro["universal-female-young-averageweight"]
    eyes = (vertices_of(head, 1), vertices_of(head, 2))
    place = place - place[torch.cat(eyes)].mean(0)
    tongue = vertices_of(head, 5)
    turning = step(-1.42, -0.82, place[:, 1] + 0.35 * (place[:, 2] + 0.6).clamp(max=0))
    roots, weights, root_place = _roots(head, place)
    lash = _lash(head, place)
    return Template(
        head=head,
        place=place,
        turning=turning,
        eyes=eyes,
        tongue=tongue,
        lash=lash,
        rim=_rim(head, place, lash),
        lips=_lips(head, place),
        outline=_outline(head, place),
        roots=roots,
        root_weights=weights,
        root_place=root_place,
    )


def vertices_of(head: HeadData, part: int) -> Tensor:
    """Numbers of a part's vertices, int64, rising."""
    own = torch.zeros(len(head.vertices), dtype=torch.bool)
    own[head.faces[head.part == part].flatten()] = True
    return own.nonzero()[:, 0]


def _lash(head: HeadData, place: Tensor) -> Tensor:
    """How far along its lash each vertex is, by its distance from the skin."""
    along = torch.zeros(len(place))
    lashes = vertices_of(head, 6)
    away = torch.cdist(place[lashes], place[vertices_of(head, 0)]).amin(1)
    along[lashes] = (away / 0.045).clamp(0, 1)
    return along


def _rim(head: HeadData, place: Tensor, lash: Tensor) -> Tensor:
    """Closeness of the skin to the roots of the upper lashes, 0..1."""
    lashes = vertices_of(head, 6)
    roots = place[lashes[(lash[lashes] < 0.25) & (place[lashes, 1] > -0.012)]]
    near = torch.zeros(len(place))
    skin = vertices_of(head, 0)
    near[skin] = hill(torch.cdist(place[skin], roots).amin(1), 0.018)
    return near


def _lips(head: HeadData, place: Tensor) -> dict[str, Tensor]:
    """Vertices along the edges of the lips, from the picture's left corner to its right.

    The jaw tells the lips apart: what it carries is the lower one.
    """
    red = (head.masks["lips"] > 0.5).nonzero()[:, 0]
    red = red[place[red, 2] > 0.1]
    low = head.units["jawOpen"][red, 1] < -0.09
    upper, lower = red[~low], red[low]
    half = place[red, 0].abs().amax()
    edges: dict[str, list[int]] = {"upper_out": [], "upper_in": [], "lower_in": [], "lower_out": []}
    for k in range(LIP_POINTS):
        x = (2 * k / (LIP_POINTS - 1) - 1) * half * 0.97
        for name, lip, sign in (
            ("upper_out", upper, 1.0),
            ("upper_in", upper, -1.0),
            ("lower_in", lower, 1.0),
            ("lower_out", lower, -1.0),
        ):
            near = lip[(place[lip, 0] - x).abs() < 0.022]
            near = near if len(near) else lip[(place[lip, 0] - x).abs().argsort()[:3]]
            edges[name].append(int(near[(sign * place[near, 1]).argmax()]))
    return {name: torch.tensor(row) for name, row in edges.items()}


def _outline(head: HeadData, place: Tensor) -> Tensor:
    """Vertices at the forehead, the chin and both cheeks."""
    face = vertices_of(head, 0)
    face = face[(place[face, 1] < 0.62) & (place[face, 1] > -1.2) & (place[face, 2] > -0.55)]
    points = place[face]
    front = face[points[:, 2] > -0.1]
    picks = [face[points[:, 0].argmax()], face[points[:, 0].argmin()], face[points[:, 1].argmax()]]
    chin = front[(place[front, 0].abs() < 0.15)]
    picks.append(chin[place[chin, 1].argmin()])
    return torch.stack(picks)


def hair_coordinates(place: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth about the skull (0 in front, pi behind) and height over the eyes (crown: 1)."""
    away = place - torch.tensor(SKULL, device=place.device)
    return torch.atan2(away[..., 0].abs(), away[..., 2]), place[..., 1] / 1.06


def scalp_edge(azimuth: Tensor) -> Tensor:
    """Lowest height (as `hair_coordinates` has it) at which hair grows, by azimuth."""
    front = 0.60 - 0.12 * step(0.35, 0.75, azimuth)
    side = front - 0.55 * step(0.95, 1.35, azimuth)
    return side - 0.62 * step(1.75, 2.3, azimuth)


def _roots(head: HeadData, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spread roots evenly over the scalp, the same ones for everybody."""
    faces = head.faces[head.part == 0]
    corner = place[faces]
    azimuth, height = hair_coordinates(corner.mean(1))
    ear = head.masks["ears"][faces].amax(1) > 0.4
    on_scalp = (height > scalp_edge(azimuth) - 0.02) & ~ear & (corner.mean(1)[:, 1] > -0.62)
    faces, corner = faces[on_scalp], corner[on_scalp]
    area = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]).norm(dim=1)
    ladder = (area / area.sum()).cumsum(0)
    number = torch.arange(ROOTS)
    seed = torch.tensor(1)
    share = (number + uniform(seed, "root", number)) / ROOTS  # stratified: no bald spots
    which = torch.searchsorted(ladder, share).clamp(max=len(faces) - 1)
    a, b = uniform(seed, "root a", number).sqrt(), uniform(seed, "root b", number)
    weights = torch.stack([1 - a, a * (1 - b), a * b], 1)
    return faces[which], weights, (corner[which] * weights[..., None]).sum(1)
