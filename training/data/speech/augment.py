"""Rooms and channels: what happens to speech between a mouth and a model.

Every function maps sound to sound of the same length, draws only from the generator it is given,
and keeps time: filters have zero phase, rooms begin with the direct sound, codecs are cut to
where the sound was. So labels stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from training.data.speech.audio import RATE, Pcm, resampled
from training.data.speech.compressed import decoded, mp3_file, opus_file

Effect = Callable[[Pcm, Generator], Pcm]


@dataclass(frozen=True, slots=True)
class Channel:
    """How often each thing happens to a clip; 0 switches it off."""

    room: float = 0.45
    noise: float = 0.6
    colour: float = 0.6
    band: float = 0.25
    codec: float = 0.2
    clipping: float = 0.1
    gain: float = 1.0

    def carry(self, pcm: Pcm, draw: Generator) -> Pcm:
        """`pcm` as it comes out at the far end, float32, the same length, within [-1, 1]."""
        chances: list[tuple[float, Effect]] = [
            (self.room, room),
            (self.noise, noise),
            (self.colour, colour),
            (self.band, band),
            (self.clipping, clipping),
            (self.gain, gain),
            (self.codec, codec),
        ]
        for chance, effect in chances:
            # Drawn in any case: switching one effect off leaves the others as they were.
            happens, own = draw.random() < chance, draw.spawn(1)[0]
            if happens:
                pcm = effect(pcm, own)
        return pcm.clip(-1, 1)


def room(pcm: Pcm, draw: Generator) -> Pcm:
    """A synthetic room: the direct sound, some early reflections, a tail of coloured noise."""
    seconds = draw.uniform(0.12, 0.6)  # until the tail has fallen by 60 dB
    response = _tail(int(seconds * RATE), seconds, draw)
    for _ in range(int(draw.integers(3, 9))):
        delay = draw.uniform(0.002, 0.045)
        response[int(delay * RATE)] += draw.choice([-1, 1]) * draw.uniform(0.1, 0.5) * 0.01 / delay
    response *= 10 ** (-draw.uniform(3, 18) / 20) / np.sqrt(np.square(response).sum())
    response[0] = 1.0
    size = _fft_size(len(pcm) + len(response))
    wet = np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(response, size), size)[: len(pcm)]
    return _as_loud_as(pcm, wet)


def noise(pcm: Pcm, draw: Generator) -> Pcm:
    """Hiss or rumble of any slope, sometimes with mains hum, 5 to 45 dB below the speech."""
    slope = _frequencies(len(pcm)).clip(50) ** -draw.uniform(0, 1.2)
    sound = _filtered(draw.standard_normal(len(pcm)), slope)
    sound /= np.std(sound) + 1e-9
    if draw.random() < 0.2:
        mains = draw.choice([50.0, 60.0]) * draw.integers(1, 5)
        sound += draw.uniform(0.5, 2) * np.sin(2 * np.pi * mains * np.arange(len(pcm)) / RATE)
    # Where there is no speech there is still noise, as of a voice of ordinary loudness.
    level = max(_loudness(pcm), 0.02) * 10 ** (-draw.uniform(5, 45) / 20)
    return np.asarray(pcm + level * sound, np.float32)


def colour(pcm: Pcm, draw: Generator) -> Pcm:
    """A microphone: a tilt of up to 6 dB per three octaves and some broad peaks and dips."""
    octaves = np.log2(_frequencies(len(pcm)).clip(40) / 1000)
    decibels = draw.uniform(-2, 2) * octaves
    for _ in range(int(draw.integers(0, 4))):
        centre, width = draw.uniform(-3.5, 3), draw.uniform(0.2, 1)
        decibels += draw.uniform(-8, 8) * np.exp(-0.5 * np.square((octaves - centre) / width))
    return _as_loud_as(pcm, _filtered(pcm, 10 ** (decibels / 20)))


def band(pcm: Pcm, draw: Generator) -> Pcm:
    """A narrow line: nothing below 50 to 350 Hz, nothing above 3 to 7.5 kHz."""
    hertz = _frequencies(len(pcm))
    low, high = draw.uniform(50, 350), draw.uniform(3000, 7500)
    passes = _rise(hertz / low) * (1 - _rise(hertz / high))
    return _as_loud_as(pcm, _filtered(pcm, passes))


def clipping(pcm: Pcm, draw: Generator) -> Pcm:
    """An amplifier driven too far."""
    drive = draw.uniform(1.5, 5) / max(float(np.abs(pcm).max()), 1e-3)
    return _as_loud_as(pcm, np.tanh(pcm * drive))


def gain(pcm: Pcm, draw: Generator) -> Pcm:
    """A peak of -28 to -1 dB."""
    peak = max(float(np.abs(pcm).max()), 0.05)
    return pcm * np.float32(10 ** (draw.uniform(-28, -1) / 20) / peak)


def codec(pcm: Pcm, draw: Generator) -> Pcm:
    """Opus at a low rate, MP3, or the telephone's 8 kHz mu-law."""
    kind = draw.integers(3)
    if kind == 0:
        return decoded(opus_file(pcm, int(draw.integers(7_000, 20_000))), len(pcm))
    if kind == 1:
        return decoded(mp3_file(pcm, int(draw.choice([16_000, 24_000, 32_000, 64_000]))), len(pcm))
    return _telephone(pcm)


def _tail(samples: int, seconds: float, draw: Generator) -> NDArray[np.float64]:
    """Decaying noise that loses its treble on the way, silent in its first 4 ms."""
    times = np.arange(samples) / RATE
    bright = draw.standard_normal(samples) * 10 ** (-3 * times / (seconds * draw.uniform(0.4, 1)))
    dull = np.convolve(draw.standard_normal(samples), np.full(8, 8**-0.5), mode="same")
    tail: NDArray[np.float64] = bright + dull * 10 ** (-3 * times / seconds)
    tail[: RATE // 250] = 0
    return tail


def _telephone(pcm: Pcm) -> Pcm:
    """8 kHz, 8 bits by the mu-law of ITU-T G.711."""
    narrow = resampled(pcm, 0.5).clip(-1, 1)
    squeezed = np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256)
    coarse = np.round(squeezed * 127) / 127
    back = np.sign(coarse) * np.expm1(np.abs(coarse) * np.log(256)) / 255
    wide = resampled(back.astype(np.float32), 2)[: len(pcm)]
    return np.pad(wide, (0, len(pcm) - len(wide)))


def _filtered(pcm: NDArray[np.floating], response: NDArray[np.floating]) -> NDArray[np.floating]:
    """Zero-phase filter by its gain at `_frequencies`."""
    size = _fft_size(len(pcm))
    return np.fft.irfft(np.fft.rfft(pcm, size) * response, size)[: len(pcm)]


def _frequencies(samples: int) -> NDArray[np.floating]:
    return np.fft.rfftfreq(_fft_size(samples), 1 / RATE)


def _rise(ratio: NDArray[np.floating]) -> NDArray[np.floating]:
    """0 well below a ratio of 1, 1 well above, 12 dB per octave and more between."""
    return np.asarray(1 / (1 + np.maximum(ratio, 1e-6) ** -8))


def _as_loud_as(pcm: Pcm, changed: NDArray[np.floating]) -> Pcm:
    scale = np.sqrt((np.square(pcm).mean() + 1e-12) / (np.square(changed).mean() + 1e-12))
    return np.asarray(changed * scale, np.float32)


def _loudness(pcm: Pcm) -> float:
    """Root mean square of the louder half of the clip."""
    blocks = np.square(pcm[: len(pcm) // 400 * 400]).reshape(-1, 400).mean(1)
    return float(np.sqrt(np.sort(blocks)[len(blocks) // 2 :].mean()))


def _fft_size(samples: int) -> int:
    """The next size that transforms fast and leaves room for a filter's ringing."""
    return 1 << (samples + 512).bit_length()
