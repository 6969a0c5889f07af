"""Make a human head act: controls to face units, pose, gaze and the camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from training.data.faces.expression import Expression
from training.data.faces.human.template import template
from training.data.faces.paint import step

HALF_FRAME = 1.165  # decimetres that half a picture shows at the eyes' depth
_EYES_AT = 0.085  # how far above the picture's middle the eyes are, half frames
_CAMERA = 11.0  # decimetres from the eyes
_NECK = (0.0, -1.0, -0.75)  # about which the head turns


@cache
def _units() -> tuple[list[str], Tensor]:
    """Names and displacements [U, V * 3] of the face units in use."""
    units = template().head.units
    names = sorted(set(_weights(Expression.still(1))))
    return names, torch.stack([units[name] for name in names]).flatten(1)


def _weights(e: Expression) -> dict[str, Tensor]:
    """How much of each face unit, [N] each."""
    shut = (1 - e.press).clamp(0, 1)
    jaw = 0.80 * e.open * (1 - 0.75 * e.press) + 0.07 * e.teeth * shut * (1 - e.open)
    round_ = e.round * shut
    bite = e.teeth * (1 - e.open) * e.press
    both = {
        "mouthSmile": 0.07 + 0.62 * e.smile + 0.22 * e.spread,
        "mouthStretch": 0.40 * e.spread * (1 - 0.4 * e.smile),
        "mouthPress": 0.55 * e.press,
        "mouthUpperUp": (0.34 * e.teeth + 0.16 * e.open)
        * (1 - 0.5 * e.press)
        * (1 - 0.7 * e.round),
        "mouthLowerDown": (0.42 * e.teeth + 0.18 * e.open) * shut * (1 - 0.7 * e.round),
        "mouthDimple": 0.15 * e.smile,
        "cheekSquint": 0.35 * e.smile,
        "eyeBlink": e.blink * 1.0 + 0.12 * e.gaze_y.clamp(min=0) * (1 - e.blink),
        "eyeSquint": 0.25 * e.smile * (1 - e.blink),
        "eyeWide": (0.28 + 0.30 * e.brow.clamp(min=0)) * (1 - e.blink),
        "eyeLookDown": 0.35 * e.gaze_y.clamp(min=0) * (1 - e.blink),
        "browOuterUp": 0.55 * e.brow.clamp(min=0),
        "browDown": 0.4 * (-e.brow).clamp(min=0),
    }
    weights = {name + side: value for name, value in both.items() for side in ("Left", "Right")}
    return weights | {
        "jawOpen": jaw,
        "mouthClose": jaw * e.press * 0.95,
        "mouthFunnel": 0.75 * round_,
        "mouthPucker": 0.60 * round_ * (1 - 0.35 * e.open),
        "mouthRollLower": 0.30 * e.press + 0.45 * bite,
        "mouthRollUpper": 0.25 * e.press * (1 - e.teeth),
        "browInnerUp": 0.7 * e.brow.clamp(min=0),
    }


@dataclass(frozen=True, slots=True)
class Stage:
    """A posed head before the camera."""

    world: Tensor  # [N, P, 3] decimetres, the camera looks along -z
    places: Tensor  # [N, P, 3] x, y in fractions of the picture (y down), z in 0..1


def act(neutral: Tensor, hair: Tensor, e: Expression) -> Stage:
    """Pose heads [N, V, 3] and what grows on them [N, H, 3]; fields of `e` are [N]."""
    t = template()
    names, basis = _units()
    weights = _weights(e)
    table = torch.stack([weights[name] for name in names], 1)
    moved = neutral + (table @ basis.to(neutral.device)).reshape(neutral.shape)
    moved = _tongue(moved, e)
    moved = torch.cat([moved, hair], 1)
    turning = torch.cat([t.turning, torch.ones(hair.shape[1])]).to(neutral.device)
    world = _turned(moved, turning, e)
    return Stage(world, project(world, e))


def _tongue(moved: Tensor, e: Expression) -> Tensor:
    """The tongue's tip goes up behind the upper teeth."""
    t = template()
    own = t.tongue.to(moved.device)
    tip = step(-0.15, 0.28, t.place[t.tongue, 2]).to(moved.device)
    lift = torch.zeros_like(moved[:, own])
    lift[..., 1] = (0.13 * e.tongue * (0.3 + 0.7 * e.open) - 0.05)[:, None] * tip
    lift[..., 2] = (0.05 * e.tongue - 0.02)[:, None] * tip
    lifted = moved.clone()
    lifted[:, own] = moved[:, own] + lift
    return lifted


def rotation(e: Expression) -> Tensor:
    """[N, 3, 3] of a head turned by yaw, then pitch, then roll."""
    yaw, pitch, roll = e.yaw, e.pitch, -e.roll
    one, nil = torch.ones_like(yaw), torch.zeros_like(yaw)

    def rows(*nine: Tensor) -> Tensor:
        return torch.stack(nine, -1).reshape(-1, 3, 3)

    cy, sy, cp, sp, cr, sr = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin(), roll.cos(), roll.sin()
    about_y = rows(cy, nil, sy, nil, one, nil, -sy, nil, cy)
    about_x = rows(one, nil, nil, nil, cp, -sp, nil, sp, cp)
    about_z = rows(cr, -sr, nil, sr, cr, nil, nil, nil, one)
    return about_z @ about_x @ about_y


def _turned(moved: Tensor, turning: Tensor, e: Expression) -> Tensor:
    pivot = torch.tensor(_NECK, device=moved.device)
    away = moved - pivot
    turned = (away[:, :, None, :] * rotation(e)[:, None]).sum(-1)
    world = away + (turned - away) * turning[None, :, None] + pivot
    rise = 0.012 * e.breath[:, None] * (1 - turning)[None]
    return world + torch.stack([torch.zeros_like(rise), rise, torch.zeros_like(rise)], -1)


def project(world: Tensor, e: Expression) -> Tensor:
    """Fractions of the picture and depth [N, P, 3] of places [N, P, 3]."""
    x, y, z = world.unbind(-1)
    near = _CAMERA / (_CAMERA - z) * (e.zoom / HALF_FRAME)[:, None]
    px = x * near + e.shift_x[:, None]
    py = -y * near - _EYES_AT + e.shift_y[:, None]
    return torch.stack([px * 0.5 + 0.5, py * 0.5 + 0.5, (0.5 - z * 0.12).clamp(0, 1)], -1)
