"""Who a stylised character is: about ninety numbers drawn from a seed.

Lengths are in half frames of a centred head (the frame is -1..1, x right, y down); colours are RGB
in 0..1 as displayed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.faces.draw import between, uniform
from training.data.faces.paint import mix
from training.data.faces.split import cornered

Traits = dict[str, Tensor]  # [N] or, for colours, [N, 3]

_RANGES = {
    # head
    "width": (0.60, 0.70),
    "crown": (0.80, 0.88),
    "chin": (0.80, 0.86),
    "taper": (0.16, 0.32),
    "jaw": (-0.02, 0.10),
    "temple": (-0.03, 0.05),
    "chin_bump": (0.02, 0.07),
    "cheekbone": (0.02, 0.07),
    "fold": (0.15, 1.0),
    "ear": (0.85, 1.2),
    "neck": (0.30, 0.42),
    "shoulder": (0.92, 1.2),
    # eyes
    "eye_x": (0.255, 0.31),
    "eye_y": (-0.07, 0.0),
    "eye_width": (0.135, 0.175),
    "eye_height": (0.082, 0.122),
    "eye_tilt": (-0.08, 0.18),
    "eye_peak": (-0.25, 0.25),
    "lower_lid": (0.55, 0.85),
    "iris": (0.074, 0.094),
    "lash": (0.2, 1.0),
    "crease": (0.0, 1.0),
    "bag": (0.0, 1.0),
    # brows
    "brow_y": (0.185, 0.235),
    "brow_thick": (0.018, 0.042),
    "brow_width": (0.15, 0.2),
    "brow_tilt": (-0.20, 0.05),
    "brow_arch": (0.2, 1.0),
    "brow_gap": (-0.02, 0.03),
    # nose
    "nose_y": (0.225, 0.30),
    "nose_width": (0.075, 0.115),
    "nose_length": (0.06, 0.14),
    "nose_bridge": (0.03, 0.085),
    "nose_ridge": (0.035, 0.06),
    "nostril": (0.5, 1.0),
    # mouth
    "mouth_y": (0.475, 0.525),
    "mouth_width": (0.222, 0.275),
    "upper_lip": (0.034, 0.062),
    "lower_lip": (0.050, 0.086),
    "bow": (0.1, 0.4),
    "gloss": (0.1, 1.0),
    "teeth_white": (0.0, 1.0),
    "gap": (0.0, 1.0),
    "corner": (0.004, 0.030),
    # skin and light
    "blush": (0.05, 0.7),
    "light_x": (-0.75, 0.75),
    "light_y": (-0.8, -0.25),
    "soft": (0.0, 1.0),
    "rim": (0.0, 1.0),
    # scene
    "lens": (0.0, 1.0),
    "frame": (0.008, 0.018),
    "lens_round": (0.0, 1.0),
    "wall": (0.0, 1.0),
}

_SKIN = torch.tensor(
    [
        [0.985, 0.872, 0.800],
        [0.950, 0.775, 0.660],
        [0.835, 0.610, 0.455],
        [0.620, 0.410, 0.285],
        [0.365, 0.232, 0.170],
    ]
)
_HAIR = torch.tensor(
    [
        [0.070, 0.058, 0.062],
        [0.170, 0.105, 0.075],
        [0.300, 0.180, 0.110],
        [0.455, 0.270, 0.140],
        [0.570, 0.235, 0.105],
        [0.800, 0.610, 0.350],
        [0.690, 0.680, 0.680],
    ]
)
_IRIS = torch.tensor(
    [
        [0.245, 0.130, 0.065],
        [0.400, 0.235, 0.100],
        [0.420, 0.410, 0.180],
        [0.260, 0.450, 0.300],
        [0.240, 0.460, 0.640],
        [0.430, 0.520, 0.570],
    ]
)


def draw_traits(seed: Tensor) -> Traits:
    """Traits of the characters numbered `seed` (int64 [N])."""
    traits = {name: between(seed, name, *limits) for name, limits in _RANGES.items()}
    for name, share in cornered(seed).items():
        low, high = _RANGES[name]
        traits[name] = low + (high - low) * share
    traits |= _colours(seed)
    traits |= _gendered(seed, traits)
    traits |= _style(seed)
    return traits


def _colours(seed: Tensor) -> Traits:
    tone = uniform(seed, "tone")
    warm = between(seed, "undertone", -1, 1)[:, None] * torch.tensor([0.012, -0.004, -0.022])
    skin = (_ramp(_SKIN, tone) + warm * (1 - 0.4 * tone[:, None])).clamp(0.08, 1)
    dye = uniform(seed, "dyed") < 0.12
    natural = _ramp(_HAIR, uniform(seed, "hair colour") * (1 - 0.55 * (tone > 0.7)))
    dyed = _hsv(
        uniform(seed, "dye"), between(seed, "dye sat", 0.35, 0.7), uniform(seed, "v") * 0.5 + 0.35
    )
    dark = uniform(seed, "iris colour") * (1 - 0.75 * (tone > 0.55))
    rose = between(seed, "lip rose", 0.0, 1.0)[:, None]
    lip = skin * torch.tensor([0.93, 0.66, 0.64])
    made_up = torch.tensor([0.78, 0.22, 0.27]) * (1 - 0.25 * tone[:, None])
    made = (uniform(seed, "lipstick") < 0.5) & (uniform(seed, "masculine") <= 0.5)
    paint = made[:, None] * (0.35 + 0.5 * rose)
    return {
        "tone": tone,
        "skin": skin,
        "hair": torch.where(dye[:, None], dyed, natural),
        "iris_colour": _ramp(_IRIS, dark),
        "lip": mix(lip + rose * torch.tensor([0.05, -0.03, -0.02]), made_up, paint).clamp(0, 1),
        "cloth": _cloth(seed, "cloth"),
        "cloth2": _cloth(seed, "trim"),
        "wall1": _wall(seed, "wall one"),
        "wall2": _wall(seed, "wall two"),
    }


def _gendered(seed: Tensor, traits: Traits) -> Traits:
    """Traits that go together: a beard wants a strong brow and short lashes."""
    masc = uniform(seed, "masculine")
    strong = (masc > 0.5).float()
    beard = (uniform(seed, "beard") < 0.5).float() * strong
    return {
        "masculine": masc,
        "lash": traits["lash"] * (1 - 0.75 * strong),
        "brow_thick": traits["brow_thick"] * (0.78 + 0.45 * masc),
        "brow_tilt": traits["brow_tilt"] + 0.06 * strong,
        "jaw": traits["jaw"] + 0.05 * strong - 0.02,
        "neck": traits["neck"] * (0.88 + 0.2 * masc),
        "beard": beard * between(seed, "beard depth", 0.25, 1.0),
        "beard_shape": uniform(seed, "beard shape"),
        "moustache": beard * (uniform(seed, "moustache") < 0.75).float(),
        "freckles": (uniform(seed, "freckled") < 0.18).float() * uniform(seed, "freckles"),
        "shadow": (uniform(seed, "eye shadow") < 0.4).float() * (1 - strong),
        "earring": (uniform(seed, "earring") < 0.4).float() * (1 - strong),
    }


def _style(seed: Tensor) -> Traits:
    toon = uniform(seed, "toon") < 0.22
    return {
        "toon": toon.float(),
        "outline": (toon & (uniform(seed, "outlined") < 0.75)).float(),
        "glasses": (uniform(seed, "glasses") < 0.2).float(),
        "collar": torch.floor(uniform(seed, "collar") * 4),
        "pattern": torch.floor(uniform(seed, "pattern") * 4),
        "scene": torch.floor(uniform(seed, "scene") * 4),
        "phase": uniform(seed, "phase") * 6.2832,
    }


def _cloth(seed: Tensor, name: str) -> Tensor:
    value = between(seed, name + " v", 0.18, 0.92)
    return _hsv(uniform(seed, name), between(seed, name + " s", 0.05, 0.65), value)


def _wall(seed: Tensor, name: str) -> Tensor:
    value = between(seed, name + " v", 0.32, 0.95)
    return _hsv(uniform(seed, name), between(seed, name + " s", 0.05, 0.42), value)


def _ramp(stops: Tensor, t: Tensor) -> Tensor:
    """Piecewise linear colour [N, 3] at `t` in 0..1 along `stops` [K, 3]."""
    at = t.clamp(0, 1) * (len(stops) - 1)
    low = at.floor().long().clamp(max=len(stops) - 2)
    share = (at - low)[:, None]
    return stops[low] * (1 - share) + stops[low + 1] * share


def _hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB [N, 3] of hue, saturation and value [N], the usual hexagon."""
    k = torch.stack([(5 + hue * 6) % 6, (3 + hue * 6) % 6, (1 + hue * 6) % 6], -1)
    fall = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * fall)
