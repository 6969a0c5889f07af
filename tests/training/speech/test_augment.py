"""Whatever a channel does to speech, it keeps its length, its time and its seed's word."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.speech.audio import RATE, Pcm
from training.data.speech.augment import (
    Channel,
    Effect,
    band,
    clipping,
    codec,
    colour,
    gain,
    noise,
    room,
)

EFFECTS = (room, noise, colour, band, clipping, gain, codec)
NOTHING = Channel(room=0, noise=0, colour=0, band=0, codec=0, clipping=0, gain=0)


@pytest.fixture(scope="module")
def speech() -> Pcm:
    """Two seconds of whispered syllables: what has no pitch tells time without doubt."""
    draw = np.random.default_rng(1)
    whisper = np.convolve(draw.standard_normal(2 * RATE), [0.5, 0.8, 0.5], mode="same")
    syllables = np.sin(2 * np.pi * 3.3 * np.arange(2 * RATE) / RATE) > -0.2
    return np.asarray(0.1 * whisper * syllables, np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.__name__)
def test_effects_keep_length_and_time(effect: Effect, seed: int, speech: Pcm) -> None:
    changed = effect(speech, np.random.default_rng(seed))
    assert changed.shape == speech.shape
    assert changed.dtype == np.float32
    assert np.isfinite(changed).all()
    assert abs(_shift(speech, changed)) <= RATE // 1000


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.__name__)
def test_the_same_seed_does_the_same_and_another_does_not(effect: Effect, speech: Pcm) -> None:
    first, again, *others = (
        effect(speech, np.random.default_rng(seed)) for seed in (5, 5, 6, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert any(np.abs(first - other).max() > 1e-6 for other in others)


def test_all_at_once_keeps_time(speech: Pcm) -> None:
    everything = Channel(room=1, noise=1, colour=1, band=1, codec=1, clipping=1, gain=1)
    for seed in range(6):
        changed = everything.carry(speech, np.random.default_rng(seed))
        assert abs(_shift(speech, changed)) <= RATE // 1000
        assert np.abs(changed).max() <= 1


def test_a_channel_that_does_nothing_is_the_identity(speech: Pcm) -> None:
    np.testing.assert_array_equal(NOTHING.carry(speech, np.random.default_rng(0)), speech)


def test_switching_one_effect_off_leaves_the_others_as_they_were(speech: Pcm) -> None:
    only_gain = Channel(room=0, noise=0, colour=0, band=0, codec=0, clipping=0, gain=1)
    also_clipped = Channel(room=0, noise=0, colour=0, band=0, codec=0, clipping=1, gain=1)
    softer = only_gain.carry(speech, np.random.default_rng(3))
    both = also_clipped.carry(speech, np.random.default_rng(3))
    assert np.abs(both).max() == pytest.approx(np.abs(softer).max(), rel=1e-3)


def test_silence_stays_finite_and_gets_noise() -> None:
    nothing = np.zeros(RATE, np.float32)
    heard = noise(nothing, np.random.default_rng(0))
    assert 0 < np.abs(heard).max() < 0.2
    for effect in EFFECTS:
        assert np.isfinite(effect(nothing, np.random.default_rng(0))).all()


def _shift(first: Pcm, second: Pcm) -> int:
    """Samples by which `second` is late: peak of the cross-correlation."""
    size = 4 * RATE
    spectrum = np.fft.rfft(first, size).conj() * np.fft.rfft(second, size)
    place = int(np.argmax(np.fft.irfft(spectrum, size)))
    return place if place < size // 2 else place - size
