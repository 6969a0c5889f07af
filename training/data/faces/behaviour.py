"""How a head behaves while it talks and listens: a function of a seed, the time and the speech.

Nothing is remembered from moment to moment, so any clip can be played again from its seed, also
from its middle. Sudden things (blinks, saccades, nods, changes of posture) live in cells of time:
each cell's hash says whether and when they happen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.faces.draw import uniform
from training.data.faces.expression import MOUTH, Expression
from training.data.faces.paint import step

_TAU = 6.2831853


@dataclass(frozen=True, slots=True)
class Motion:
    """Whose nerves (seed), how lively, and from when on."""

    seed: Tensor  # int64 [B]
    liveliness: Tensor  # float32 [B]: 0 keeps the head still (it still blinks), 1 is natural
    start: Tensor  # float32 [B], seconds
    fps: int = 25

    def times(self, frames: int) -> Tensor:
        """Seconds [B, frames] of the clip's frames."""
        return self.start[:, None] + torch.arange(frames)[None] / self.fps


def perform(motion: Motion, mouth: Tensor, speaking: Tensor) -> Expression:
    """The whole head over time.

    `mouth` [B, T, 6] holds the controls in the order of `MOUTH`, `speaking` [B, T] is 1 while it
    talks and 0 while it listens; both float32 in 0..1, on the CPU. Fields of the result are [B, T].
    """
    seed, t = motion.seed[:, None], motion.times(mouth.shape[1])
    speaking = _smoothed(speaking, motion.fps)
    stress = _emphasis(mouth[..., 0], motion.fps) * speaking
    lively = motion.liveliness[:, None]
    beat = uniform(seed, "beat", torch.floor(t / 1.7).long())
    nod = _nods(seed, t) * (1 - speaking)
    yaw = lively * (0.13 * _posture(seed, "yaw", t, 3.4) + 0.05 * _drift(seed, "yaw", t, 0.35))
    pitch = lively * (0.045 * _posture(seed, "pitch", t, 2.9) + 0.02 * _drift(seed, "p", t, 0.5))
    pitch = pitch + lively * (0.075 * nod + 0.05 * stress * (beat - 0.25))
    roll = lively * (0.045 * _posture(seed, "roll", t, 4.3) + 0.012 * _drift(seed, "roll", t, 0.3))
    gaze_x, gaze_y = _gaze(seed, t, speaking)
    smile = 0.10 + 0.08 * _drift(seed, "smile", t, 0.11) + 0.30 * _pleased(seed, t) * (1 - speaking)
    brow = 0.12 * _drift(seed, "brow", t, 0.2) + 0.75 * stress * step(0.45, 0.7, beat) + 0.15 * nod
    return Expression(
        **{name: mouth[..., k] for k, name in enumerate(MOUTH)},
        smile=smile.clamp(0, 1),
        blink=_blinks(seed, t),
        gaze_x=(gaze_x - 1.5 * yaw).clamp(-1, 1),  # the eyes stay with whom they talk to
        gaze_y=(gaze_y - 1.2 * pitch).clamp(-1, 1),
        brow=brow.clamp(-1, 1),
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        shift_x=lively * 0.03 * _posture(seed, "shift x", t, 4.7) + 0.25 * yaw * lively,
        shift_y=lively * 0.012 * _posture(seed, "shift y", t, 5.3),
        zoom=1 + lively * 0.018 * _posture(seed, "zoom", t, 6.1),
        breath=torch.sin(_TAU * (0.24 + 0.05 * uniform(seed, "breath")) * t),
    )


def _drift(seed: Tensor, name: str, t: Tensor, rate: float) -> Tensor:
    """Smooth wandering in about -1..1 with most of it slower than `rate` Hz."""
    total = torch.zeros_like(t)
    for k, (share, speed) in enumerate(((0.55, 0.5), (0.30, 1.1), (0.15, 2.3))):
        phase = uniform(seed, "phase " + name, k) * _TAU
        pace = rate * speed * (0.8 + 0.4 * uniform(seed, "pace " + name, k))
        total = total + share * torch.sin(_TAU * pace * t + phase)
    return total


def _posture(seed: Tensor, name: str, t: Tensor, hold: float) -> Tensor:
    """Held positions in -1..1, about `hold` seconds each, with unhurried moves between them."""
    place = t / hold + uniform(seed, "offset " + name)
    cell = torch.floor(place).long()
    here = uniform(seed, name, cell) * 2 - 1
    there = uniform(seed, name, cell + 1) * 2 - 1
    return here + (there - here) * step(1 - 0.9 / hold, 1.0, place - cell)


def _blinks(seed: Tensor, t: Tensor) -> Tensor:
    """0 open to 1 shut: a blink in most cells of 3 s, now and then a double one."""
    closed = torch.zeros_like(t)
    cell = torch.floor(t / 3.0).long()
    for near in (-1, 0):
        here = cell + near
        at = (here + 0.05 + 0.8 * uniform(seed, "blink", here)) * 3.0
        chance = uniform(seed, "blinks", here)
        closed = torch.maximum(closed, _lid(t - at) * (chance < 0.85))
        closed = torch.maximum(closed, _lid(t - at - 0.42) * (chance < 0.14))
    return closed


def _lid(dt: Tensor) -> Tensor:
    """One blink `dt` seconds after it began: down in 90 ms, up again in 180 ms."""
    return step(0.0, 0.09, dt) * (1 - step(0.13, 0.31, dt))


def _gaze(seed: Tensor, t: Tensor, speaking: Tensor) -> tuple[Tensor, Tensor]:
    """Where the eyes look: mostly at the viewer, at times aside, in quick jumps."""
    place = t / 1.1 + uniform(seed, "gaze offset")
    cell = torch.floor(place).long()
    jump = step(0.0, 0.05, place - cell)
    aside = 0.14 + 0.16 * speaking  # a listener is more attentive

    def look(name: str, cell: Tensor, wide: float) -> Tensor:
        away = (uniform(seed, "aside", cell) < aside).float()
        return (uniform(seed, name, cell) * 2 - 1) * wide * (0.08 + 0.92 * away)

    pairs = [
        (look(name, cell - 1, wide), look(name, cell, wide))
        for name, wide in (("gaze x", 0.75), ("gaze y", 0.4))
    ]
    (x0, x1), (y0, y1) = pairs
    return x0 + (x1 - x0) * jump, y0 + (y1 - y0) * jump


def _nods(seed: Tensor, t: Tensor) -> Tensor:
    """A listener's nods: two dips that die away, in about half of the cells of 3.8 s."""
    place = t / 3.8 + uniform(seed, "nod offset")
    cell = torch.floor(place).long()
    dt = (place - cell) * 3.8 - 0.6
    dips = torch.sin(_TAU * 1.5 * dt) ** 2 * torch.exp(-1.6 * dt.clamp(min=0))
    return dips * (dt > 0) * (dt < 1.33) * (uniform(seed, "nods", cell) < 0.5)


def _pleased(seed: Tensor, t: Tensor) -> Tensor:
    """A listener's small smiles, 0..1."""
    return (_posture(seed, "pleased", t, 3.1) - 0.2).clamp(min=0) / 0.8


def _smoothed(x: Tensor, fps: int) -> Tensor:
    """Running mean over the past 0.3 s."""
    reach = max(1, round(0.3 * fps))
    padded = F.pad(x[:, None], (reach - 1, 0), mode="replicate")
    return F.avg_pool1d(padded, reach, stride=1)[:, 0]


def _emphasis(opening: Tensor, fps: int) -> Tensor:
    """How much the mouth has been open of late, 0..1: stressed syllables open it wide."""
    return ((_smoothed(opening, fps) - 0.22) / 0.35).clamp(0, 1)
