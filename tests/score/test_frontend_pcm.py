"""PCM is checked at the door, and resampling does not care how it was cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.score.frontend.grid import Rates
from services.score.frontend.pcm import Pcm16, Resampler, finite_samples, pcm16, samples_of
from talkingmachines.errors import BadInput

RATES = [8_000, 22_050, 24_000, 44_100, 48_000]


def noise(samples: int, seed: int = 0) -> Pcm16:
    return np.random.default_rng(seed).integers(-20_000, 20_000, samples).astype(np.int16)


def resampled(rates: Rates, pieces: list[Pcm16]) -> Pcm16:
    resampler = Resampler(rates)
    return np.concatenate([resampler.push(piece) for piece in pieces])


def test_bytes_and_arrays_mean_the_same() -> None:
    pcm = noise(100)
    assert np.array_equal(pcm16(pcm.astype("<i2").tobytes(), "pcm"), pcm)
    assert pcm16(pcm, "pcm") is pcm
    assert pcm16(b"", "pcm").shape == (0,)
    edges = samples_of(np.array([-32768, 0, 32767], np.int16))
    assert edges.shape == (1, 3)
    assert edges.dtype == torch.float32
    assert edges[0].tolist() == [-1.0, 0.0, 32767 / 32768]


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        (b"\x00\x01\x02", "chunk.pcm: expected 16-bit PCM, an even number, got 3 bytes"),
        (np.zeros(4, np.float32), "chunk.pcm: expected int16 samples, got float32 samples"),
        (np.full(4, np.nan), "chunk.pcm: expected int16 samples, got float64 samples"),
        (np.zeros((2, 4), np.int16), r"chunk.pcm: expected one channel.*got shape \[2, 4\]"),
    ],
)
def test_unusable_pcm_is_refused_by_name(pcm: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        pcm16(pcm, "chunk.pcm")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.tensor([[0.0, float("nan")]]), "got a value that is not finite"),
        (torch.tensor([[0.0, float("inf")]]), "got a value that is not finite"),
        (torch.zeros(1, 4, dtype=torch.float64), "got torch.float64 samples"),
        (torch.zeros(4), r"got shape \[4\]"),
    ],
)
def test_unusable_samples_are_refused(samples: torch.Tensor, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        finite_samples(samples, "samples")


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    cuts=st.lists(st.integers(0, 6_000), max_size=12),
)
def test_pieces_of_any_size_give_what_the_whole_gives(rate: int, cuts: list[int]) -> None:
    pcm = noise(6_000)
    pieces = np.split(pcm, sorted(cuts))
    rates = Rates(rate, 16_000)
    assert np.array_equal(resampled(rates, pieces), resampled(rates, [pcm]))


@pytest.mark.parametrize("rate", RATES)
def test_a_stream_may_be_entered_anywhere(rate: int) -> None:
    rates = Rates(rate, 16_000)
    pcm = noise(rate)
    whole = resampled(rates, [pcm])
    at = rates.step * 7
    entered = resampled(rates, [pcm[at:]])
    settled = (at + rates.history) * rates.target // rates.source
    assert settled < len(whole) / 2
    skipped = rates.history * rates.target // rates.source
    assert np.array_equal(entered[skipped:], whole[settled:])


@pytest.mark.parametrize("rate", RATES)
def test_results_come_no_later_than_stated(rate: int) -> None:
    rates = Rates(rate, 16_000)
    known = len(resampled(rates, [noise(rate)]))
    assert known >= (rate - rates.lookahead) * rates.target // rate
    assert rates.lookahead / rate <= 0.0025


def test_a_tone_keeps_its_pitch_and_its_size() -> None:
    time = np.arange(48_000) / 48_000
    tone = (10_000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    out = resampled(Rates(48_000, 16_000), [tone])[1000:15_000].astype(np.float64)
    again = np.arange(1000, 15_000) / 16_000
    expected = 10_000 * np.sin(2 * np.pi * 440 * again)
    assert np.abs(out - expected).max() < 30


def test_the_same_rate_is_left_alone() -> None:
    pcm = noise(50)
    assert Resampler(Rates(16_000, 16_000)).push(pcm) is pcm
    assert Rates(16_000, 16_000).lookahead == 0
