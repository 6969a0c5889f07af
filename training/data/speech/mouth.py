"""Phones to the six mouth controls that the renderers draw and the audio encoder learns.

Co-articulation by normalised convolution: each phone has a target per control and a weight that
says how much it insists on it; a control is the weighted mean of the targets under a Gaussian. So
/k/ between two rounded vowels is rounded, since it does not care, and /p/ never leaves the lips
open, since it does. (The idea of dominance: Cohen & Massaro 1993.) Closures of the lips are
added with a narrow kernel and a flat top, for that is what an eye checks.

Legend: T frames at 100 Hz, 6 controls in the order of `CONTROLS`, all in [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.data.speech.audio import RATE, Pcm
from training.data.speech.phones import FRAMES_PER_SECOND, PhoneTrack, length

CONTROLS = ("open", "spread", "round", "press", "teeth", "tongue")

Controls = NDArray[np.float32]  # [T, 6]

# Rest: lips together without force.
REST = np.array([0.0, 0.0, 0.0, 0.1, 0.0, 0.0], np.float32)

# open: jaw and lips apart; spread: corners outwards; round: protruded and narrow; press: lips
# pressed together; teeth: upper teeth shown; tongue: its tip raised or between the teeth.
_SHAPES: dict[str, tuple[float, ...]] = {
    #       open spread round press teeth tongue
    "SIL": (0.00, 0.00, 0.00, 0.10, 0.00, 0.00),
    "AA": (1.00, 0.05, 0.00, 0.00, 0.35, 0.00),
    "AE": (0.85, 0.50, 0.00, 0.00, 0.50, 0.00),
    "AH": (0.60, 0.10, 0.00, 0.00, 0.35, 0.00),
    "AO": (0.75, 0.00, 0.55, 0.00, 0.10, 0.00),
    "EH": (0.55, 0.50, 0.00, 0.00, 0.50, 0.00),
    "ER": (0.35, 0.00, 0.45, 0.00, 0.35, 0.10),
    "IH": (0.35, 0.55, 0.00, 0.00, 0.60, 0.00),
    "IY": (0.25, 0.95, 0.00, 0.00, 0.80, 0.00),
    "UH": (0.30, 0.00, 0.60, 0.00, 0.10, 0.00),
    "UW": (0.22, 0.00, 1.00, 0.00, 0.00, 0.00),
    "B": (0.00, 0.00, 0.10, 1.00, 0.00, 0.00),
    "F": (0.10, 0.15, 0.00, 0.25, 1.00, 0.00),
    "TH": (0.25, 0.20, 0.00, 0.00, 0.70, 1.00),
    "T": (0.22, 0.25, 0.00, 0.00, 0.60, 0.60),
    "L": (0.35, 0.20, 0.00, 0.00, 0.50, 1.00),
    "S": (0.12, 0.55, 0.00, 0.00, 1.00, 0.10),
    "SH": (0.20, 0.00, 0.75, 0.00, 1.00, 0.00),
    "K": (0.30, 0.15, 0.00, 0.00, 0.40, 0.20),
    "HH": (0.40, 0.10, 0.00, 0.00, 0.30, 0.00),
    "R": (0.25, 0.00, 0.65, 0.00, 0.30, 0.20),
    "W": (0.12, 0.00, 1.00, 0.00, 0.00, 0.00),
    "Y": (0.25, 0.70, 0.00, 0.00, 0.70, 0.20),
}
_ALIKE = {
    "P": "B", "M": "B", "V": "F", "DH": "TH", "D": "T", "N": "T", "Z": "S", "ZH": "SH",
    "CH": "SH", "JH": "SH", "G": "K", "NG": "K",
}  # fmt: skip
# A diphthong glides from one vowel to another; the first part is the longer one.
_GLIDES = {
    "AY": ("AA", "IY"), "AW": ("AA", "UW"), "EY": ("EH", "IY"), "OW": ("AO", "UW"),
    "OY": ("AO", "IY"),
}  # fmt: skip
_FIRST_PART = 0.55

# What a phone does not insist on, it takes from its neighbours. Those not named weigh 1.
_INDIFFERENT: dict[str, dict[str, float]] = {
    "HH": {"open": 0.25, "spread": 0.1, "round": 0.1, "teeth": 0.2, "tongue": 0.3},
    "K": {"open": 0.4, "spread": 0.15, "round": 0.15, "teeth": 0.4, "tongue": 0.6},
    "T": {"open": 0.7, "spread": 0.25, "round": 0.25, "teeth": 0.7},
    "L": {"open": 0.5, "spread": 0.3, "round": 0.3, "teeth": 0.6},
    "S": {"spread": 0.5, "round": 0.5},
    "TH": {"spread": 0.3, "round": 0.4},
    "B": {"spread": 0.4, "round": 0.3, "tongue": 0.3, "open": 2.5, "teeth": 1.5},
    "F": {"spread": 0.4, "round": 0.5, "tongue": 0.3, "open": 1.5, "teeth": 1.5},
    "W": {"round": 1.5},
    "SH": {"round": 1.2},
    "AH": {"spread": 0.6, "round": 0.5},
    "SIL": {"spread": 0.6, "round": 0.6},
}

_RATE = 200  # Hz, inner grid: two points to a frame
# Seconds, standard deviation: lips round early and slowly, jaw and tongue tip are quick.
_REACH = {"open": 0.032, "spread": 0.042, "round": 0.05, "press": 0.03, "teeth": 0.03,
          "tongue": 0.026}  # fmt: skip
_CLOSURE_REACH = 0.014  # seconds
_CLOSURE_GAIN = 1.25  # lifts a closure of 40 ms to a full one
_CLOSING = ("B", "P", "M")

_LOUD = 0.08  # seconds: loudness of a syllable, not of a phone
_QUIET_DB = 26.0  # below the clip's loud parts: where the opening has shrunk to _MURMUR
_MURMUR = 0.5


def mouth(track: PhoneTrack, pcm: Pcm) -> Controls:
    """The controls at 100 Hz, [T, 6]; frame t is the mouth at the middle of its 10 ms.

    Args:
        track: phones of the clip.
        pcm: the same clip at 16 kHz, clean: louder speech opens the mouth wider. Only its
            loudness relative to its own loud parts counts.
    """
    targets, weights = _posed(track)
    shapes = np.stack(
        [
            _smooth(targets[:, index] * weights[:, index], _REACH[name])
            / _smooth(weights[:, index], _REACH[name])
            for index, name in enumerate(CONTROLS)
        ],
        axis=1,
    )
    closed = _closures(track)
    effort = _effort(pcm, len(shapes))
    shapes[:, 0] *= effort * (1 - closed)
    shapes[:, 3] = np.maximum(shapes[:, 3], closed)
    shapes[:, 4] *= 1 - closed
    frames = shapes.reshape(length(track), _RATE // FRAMES_PER_SECOND, len(CONTROLS)).mean(1)
    return np.asarray(frames.clip(0, 1), np.float32)


def at_fps(controls: Controls, fps: float, *, frames: int | None = None) -> Controls:
    """Controls at the middle of each video frame, [frames, 6]; rest beyond the clip's ends.

    Args:
        controls: [T, 6] at 100 Hz.
        frames: how many; those that begin within the clip if left out.
    """
    if frames is None:
        frames = int(len(controls) * fps / FRAMES_PER_SECOND)
    moments = (np.arange(frames) + 0.5) / fps
    return at_moments(controls, moments)


def at_moments(controls: Controls, moments: NDArray[np.floating]) -> Controls:
    """Controls at any `moments` in seconds, [len(moments), 6], linear between the frames."""
    places = (np.arange(len(controls)) + 0.5) / FRAMES_PER_SECOND
    columns = [
        np.interp(moments, places, column, left=rest, right=rest)
        for column, rest in zip(controls.T, REST, strict=True)
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def shape_of(phone: str) -> dict[str, float]:
    """The target of a phone that stands alone; of a diphthong, its first part."""
    key = _GLIDES.get(phone, (phone,))[0]
    return dict(zip(CONTROLS, _SHAPES[_ALIKE.get(key, key)], strict=True))


def _posed(track: PhoneTrack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Targets and weights on the inner grid, [2T, 6] each."""
    keys: list[str] = []
    for phone in track:
        points = phone.frames * _RATE // FRAMES_PER_SECOND
        first, second = _GLIDES.get(phone.name, (phone.name, phone.name))
        early = round(points * _FIRST_PART)
        keys += [first] * early + [second] * (points - early)
    kinds = sorted(set(keys))
    rows = np.searchsorted(kinds, keys)
    targets = np.array([_SHAPES[_ALIKE.get(kind, kind)] for kind in kinds])
    weights = np.array([_weights(_ALIKE.get(kind, kind)) for kind in kinds])
    return targets[rows], weights[rows]


def _weights(shape: str) -> list[float]:
    own = _INDIFFERENT.get(shape, {})
    return [own.get(name, 1.0) for name in CONTROLS]


def _closures(track: PhoneTrack) -> NDArray[np.floating]:
    """1 where the lips touch, on the inner grid, [2T]."""
    spans = [
        np.full(phone.frames * _RATE // FRAMES_PER_SECOND, float(phone.name in _CLOSING))
        for phone in track
    ]
    return (_smooth(np.concatenate(spans), _CLOSURE_REACH) * _CLOSURE_GAIN).clip(0, 1)


def _effort(pcm: Pcm, points: int) -> NDArray[np.floating]:
    """How widely the mouth opens for its loudness, in [_MURMUR, 1], on the inner grid."""
    hop = RATE // _RATE
    padded = np.zeros(points * hop, np.float64)
    padded[: min(len(pcm), len(padded))] = pcm[: len(padded)]
    power = _smooth(np.square(padded).reshape(points, hop).mean(1), _LOUD)
    level = 10 * np.log10(power + 1e-9)
    below = np.percentile(level, 95) - level
    return np.asarray(1 - (1 - _MURMUR) * (below / _QUIET_DB).clip(0, 1))


def _smooth(values: NDArray[np.floating], seconds: float) -> NDArray[np.floating]:
    """Gaussian, ends held, same length."""
    reach = round(3.5 * seconds * _RATE)
    offsets = np.arange(-reach, reach + 1) / _RATE
    kernel = np.exp(-0.5 * np.square(offsets / seconds))
    padded = np.pad(values, reach, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")
