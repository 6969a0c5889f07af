"""What an eye checks in a talking mouth, stated as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.speech.audio import RATE, Pcm
from training.data.speech.mouth import CONTROLS, REST, at_fps, at_moments, mouth
from training.data.speech.phones import CONSONANTS, PHONES, VOWELS, Phone, PhoneTrack, length

OPEN, SPREAD, ROUND, PRESS, TEETH, TONGUE = range(len(CONTROLS))


def said(*phones: tuple[str, int]) -> PhoneTrack:
    return (Phone("SIL", 30), *(Phone(name, frames) for name, frames in phones), Phone("SIL", 30))


def hiss(track: PhoneTrack, level: float = 0.1) -> Pcm:
    noise = np.random.default_rng(0).standard_normal(length(track) * RATE // 100)
    return (level * noise).astype(np.float32)


@given(st.lists(st.tuples(st.sampled_from(sorted(PHONES)), st.integers(1, 40)), max_size=12))
def test_controls_stay_in_range_for_any_speech(phones: list[tuple[str, int]]) -> None:
    track = said(*phones)
    controls = mouth(track, hiss(track))
    assert controls.shape == (length(track), len(CONTROLS))
    assert controls.dtype == np.float32
    assert np.isfinite(controls).all()
    assert controls.min() >= 0
    assert controls.max() <= 1


def test_silence_is_rest() -> None:
    track = (Phone("SIL", 60),)
    np.testing.assert_allclose(mouth(track, hiss(track)), np.tile(REST, (60, 1)), atol=1e-6)


@pytest.mark.parametrize("closure", ["P", "B", "M"])
@pytest.mark.parametrize("around", sorted(VOWELS))
def test_lips_close_for_p_b_m_between_any_vowels(closure: str, around: str) -> None:
    track = said((around, 12), (closure, 5), (around, 12))
    controls = mouth(track, hiss(track))
    middle = controls[44]
    assert middle[PRESS] > 0.95
    assert middle[OPEN] < 0.03
    assert controls[36, PRESS] < 0.05
    assert controls[52, PRESS] < 0.05


@pytest.mark.parametrize("phone", sorted(CONSONANTS - {"P", "B", "M"} | VOWELS))
def test_lips_press_for_nothing_else(phone: str) -> None:
    track = said(("AA", 10), (phone, 10), ("AA", 10))
    assert mouth(track, hiss(track))[35:55, PRESS].max() < 0.3


def test_a_vowel_opens_around_its_own_middle() -> None:
    track = said(("AA", 20))
    opening = mouth(track, hiss(track))[:, OPEN]
    assert np.average(np.arange(80) + 0.5, weights=opening) == pytest.approx(40, abs=1.0)


def test_a_consonant_without_a_shape_of_its_own_takes_its_neighbours() -> None:
    round_k = said(("UW", 15), ("K", 8), ("UW", 15))
    spread_k = said(("IY", 15), ("K", 8), ("IY", 15))
    among_round = mouth(round_k, hiss(round_k))[49]
    among_spread = mouth(spread_k, hiss(spread_k))[49]
    assert among_round[ROUND] > 0.6
    assert among_spread[ROUND] < 0.05
    assert among_spread[SPREAD] > 0.6


def test_lips_round_before_the_sound() -> None:
    track = said(("T", 10), ("UW", 15))
    rounding = mouth(track, hiss(track))[:, ROUND]
    assert rounding[40 - 4] > 0.2


def test_a_diphthong_glides_from_open_to_spread() -> None:
    track = said(("AY", 24))
    controls = mouth(track, hiss(track))
    assert controls[34, OPEN] > 2 * controls[52, OPEN]
    assert controls[50, SPREAD] > 2 * controls[36, SPREAD]


def test_louder_syllables_open_wider_and_gain_does_not_matter() -> None:
    track = said(("AA", 25), ("SIL", 20), ("AA", 25))
    pcm = hiss(track)
    pcm[: len(pcm) // 2] *= 0.1
    opening = mouth(track, pcm)[:, OPEN]
    assert opening[42] < 0.8 * opening[87]
    np.testing.assert_allclose(mouth(track, pcm * 0.2), mouth(track, pcm), atol=0.02)


@pytest.mark.parametrize("fps", [16, 25, 30, 100])
def test_frames_are_the_controls_at_their_middles(fps: int) -> None:
    ramp = np.tile(np.linspace(0, 0.995, 200, dtype=np.float32)[:, None], len(CONTROLS))
    frames = at_fps(ramp, fps)
    assert len(frames) == 2 * fps
    middles = (np.arange(2 * fps) + 0.5) / fps
    np.testing.assert_allclose(frames[1:-1, OPEN], middles[1:-1] / 2 - 1 / 400, atol=1e-5)


def test_beyond_the_clip_is_rest() -> None:
    talking = np.full((10, len(CONTROLS)), 0.7, np.float32)
    outside = at_moments(talking, np.array([-1.0, 5.0]))
    np.testing.assert_array_equal(outside, np.stack([REST, REST]))
    assert at_fps(talking, 25, frames=9).shape == (9, len(CONTROLS))
