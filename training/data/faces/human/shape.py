"""Who a human character is: the weights of its shape, drawn from a seed, and the neutral head."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from training.data.faces.draw import between, uniform
from training.data.faces.human.assets import AGES, RACES, SEXES, WEIGHTS
from training.data.faces.human.template import Template, template, vertices_of
from training.data.faces.split import cornered

_TALL = 2.08  # crown to chin, decimetres
_MOUTH = 0.485  # corner to corner at least: what the picture needs
_WIDER = "mouth-scale-horiz-incr"
_FAVOURS = {  # sliders that suit a talking picture: a wide mouth, open eyes
    "eye-height2-incr": 0.55,
    "eye-scale-incr": 0.75,
    "mouth-angles-up": 0.15,
}
_SPREAD = {  # how far sliders stray, where it is not the usual
    "chin-height-incr": 0.2,
    "ear-wing-incr": 0.2,
    "ear-flap-incr": 0.2,
    "eye-trans-up": 0.1,
    "mouth-trans-up": 0.15,
    "mouth-angles-up": 0.15,
    "mouth-scale-depth-incr": 0.15,
    "nose-trans-up": 0.15,
    "neck-double-incr": 0.25,
    "forehead-trans-forward": 0.15,
    "eyebrows-trans-forward": 0.2,
    "eye-push1-out": 0.15,
}
_USUAL = 0.22


@cache
def _basis() -> tuple[list[str], Tensor]:
    """Names and displacements [M, V * 3] of all that shapes an identity."""
    head = template().head
    names, rows = [], []
    for name, moved in head.macro.items():
        names.append(name)
        rows.append(moved)
    for name, (low, high) in head.sliders.items():
        names += [name + "<", name]
        rows += [low, high]
    return names, torch.stack(rows).flatten(1)


def draw_neutral(seed: Tensor, masculine: Tensor) -> Tensor:
    """Neutral heads [N, V, 3] of identities `seed` (int64 [N]); origin between the eyes.

    Scaled so that every mouth has the width that the picture wants.
    """
    t = template()
    names, basis = _basis()
    weights = _macro(seed, masculine) | _sliders(seed, t)
    table = torch.stack([weights[name] for name in names], 1)
    heads = t.head.vertices + (table @ basis).reshape(len(seed), -1, 3)
    heads = heads - heads[:, torch.cat(t.eyes)].mean(1, keepdim=True)
    for part, lower in ((3, 0.052), (4, 0.045)):  # the teeth of the template hide behind its lips
        teeth = vertices_of(t.head, part)
        heads[:, teeth] = heads[:, teeth] * torch.tensor([0.84, 1.0, 1.0])
        heads[:, teeth] += torch.tensor([0.0, -lower, 0.012])
    chin = t.outline[3]
    heads = heads * (_TALL / (heads[..., 1].amax(1) - heads[:, chin, 1]))[:, None, None]
    return heads + _widening(heads, t)[:, None, None] * t.head.sliders[_WIDER][1]


def _widening(heads: Tensor, t: Template) -> Tensor:
    """How much of the slider `_WIDER` [N] brings a mouth to its least width."""
    right, left = t.lips["upper_in"][[0, -1]]
    gain = t.head.sliders[_WIDER][1][left, 0] - t.head.sliders[_WIDER][1][right, 0]
    return ((_MOUTH - (heads[:, left, 0] - heads[:, right, 0])) / gain).clamp(0, 1.6)


def _macro(seed: Tensor, masculine: Tensor) -> dict[str, Tensor]:
    race = torch.stack([uniform(seed, f"race {name}") ** 2.5 + 0.01 for name in RACES])
    race = race / race.sum(0)
    old = between(seed, "old", -0.8, 0.6).clamp(min=0)
    child = between(seed, "child", -0.9, 0.35).clamp(min=0)
    age = {"young": 1 - old * (1 - child) - child, "old": old * (1 - child), "child": child}
    male = ((masculine - 0.5) * 3 + 0.5).clamp(0, 1)
    sex = {"female": 1 - male, "male": male}
    heavy = between(seed, "heavy", -0.7, 0.8)
    weight = {
        "minweight": (-heavy).clamp(min=0),
        "averageweight": 1 - heavy.abs(),
        "maxweight": heavy.clamp(min=0),
    }
    macro = {}
    for s in SEXES:
        for a in AGES:
            for k, r in enumerate(RACES):
                macro[f"{r}-{s}-{a}"] = race[k] * sex[s] * age[a]
            for w in WEIGHTS:
                macro[f"universal-{s}-{a}-{w}"] = sex[s] * age[a] * weight[w]
    return macro


def _sliders(seed: Tensor, t: Template) -> dict[str, Tensor]:
    held_out = cornered(seed)
    weights = {}
    for name in t.head.sliders:
        value = (
            (uniform(seed, name) + uniform(seed, name + " too") - 1) * 2 * _SPREAD.get(name, _USUAL)
        )
        if name.startswith("head-") and not name.endswith("-incr"):
            value = value.abs() * (uniform(seed, "shape of " + name) < 0.3)
        if name == "eye-trans-out":
            value = (held_out["eye_x"] * 2 - 1) * 0.6
        if name == "mouth-upperlip-volume-incr":
            value = (held_out["mouth_width"] * 2 - 1) * 0.4
        value = value + _FAVOURS.get(name, 0.0)
        weights[name] = value.clamp(0, 1)
        weights[name + "<"] = (-value).clamp(0, 1)
    return weights
