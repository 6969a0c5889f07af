"""Sound as the corpus knows it: mono float32 at 16 kHz in [-1, 1]."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

RATE = 16_000  # Hz
Pcm = NDArray[np.float32]  # [samples]

_PEAK = 0.7  # of every utterance in the corpus
_ZEROS = 24  # zero crossings of the interpolation kernel on each side
_PASS = 0.94  # share of the lower Nyquist frequency that is kept
_PHASES = 128  # kernels between two samples; linear between these
_BLOCK = 8192  # samples computed together


def resampled(pcm: Pcm, ratio: float) -> Pcm:
    """`pcm` at `ratio` times its rate: sample n lies where n / ratio lay, no delay.

    Band-limited interpolation at any real ratio, from a table of a windowed sinc (Smith & Gossett
    1984).
    """
    if ratio == 1:
        return pcm
    table = _interpolator(min(1.0, ratio) * _PASS)
    taps = table.shape[1]
    padded = np.pad(pcm, taps)
    out = np.empty(int(len(pcm) * ratio), np.float32)
    for begin in range(0, len(out), _BLOCK):
        places = np.arange(begin, min(begin + _BLOCK, len(out))) / ratio
        nearest = places.astype(np.int64)
        phase, rest = np.divmod((places - nearest) * _PHASES, 1)
        row = phase.astype(np.int64)
        mix = rest.astype(np.float32)[:, None]
        kernel = table[row] * (1 - mix) + table[row + 1] * mix
        near = padded[nearest[:, None] + np.arange(taps)[None] + taps - (taps // 2 - 1)]
        out[begin : begin + len(places)] = np.einsum("nk,nk->n", near, kernel)
    return out


def normalised(pcm: Pcm) -> Pcm:
    """Without offset, its peak at 0.7."""
    centred = pcm - np.float32(pcm.mean())
    return centred * np.float32(_PEAK / max(float(np.abs(centred).max()), 1e-4))


def _interpolator(band: float) -> NDArray[np.float32]:
    """Rows of filter taps for a sample that lies row / _PHASES after the one it follows."""
    half = math.ceil(_ZEROS / band)
    taps = np.arange(-half + 1, half + 1)
    distance = taps[None] - (np.arange(_PHASES + 1) / _PHASES)[:, None]
    window = np.i0(9.0 * np.sqrt((1 - np.square(distance / half)).clip(0))) / np.i0(9.0)
    return (band * np.sinc(band * distance) * window).astype(np.float32)
