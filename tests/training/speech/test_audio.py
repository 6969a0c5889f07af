"""Resampling and compression keep speech where it was."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.speech.audio import RATE, normalised, resampled
from training.data.speech.compressed import decoded, mp3_file, opus_file


@pytest.mark.parametrize("ratio", [0.5, 2 / 3, 16_000 / 22_050, 0.9, 1.0, 1.1, 2.0])
def test_resampling_keeps_a_tone_and_its_place(ratio: float) -> None:
    times = np.arange(8000) / RATE
    tone = np.sin(2 * np.pi * 440 * times + 0.3).astype(np.float32)
    out = resampled(tone, ratio)
    assert len(out) == int(8000 * ratio)
    assert out.dtype == np.float32
    expected = np.sin(2 * np.pi * 440 * np.arange(len(out)) / (RATE * ratio) + 0.3)
    inside = slice(200, -200)
    np.testing.assert_allclose(out[inside], expected[inside], atol=2e-3)


def test_resampling_down_removes_what_would_alias() -> None:
    high = np.sin(2 * np.pi * 7000 * np.arange(8000) / RATE).astype(np.float32)
    assert np.abs(resampled(high, 0.5)[200:-200]).max() < 0.01


def test_normalised_speech_peaks_at_seven_tenths_without_offset() -> None:
    pcm = normalised(np.array([0.5, 0.5, 0.5, 0.9], np.float32))
    assert np.abs(pcm).max() == pytest.approx(0.7)
    assert pcm.mean() == pytest.approx(0, abs=1e-6)
    assert normalised(np.zeros(8, np.float32)).max() == 0


@pytest.mark.parametrize("samples", [1, 319, 16_000, 31_234])
def test_compression_keeps_length_and_place(samples: int) -> None:
    pcm = _speechlike(samples)
    for file in (opus_file(pcm), mp3_file(pcm, 64_000)):
        back = decoded(file, samples)
        assert back.shape == pcm.shape
        assert back.dtype == np.float32
        if samples > 4000:
            assert _lag(pcm, back) == 0
            assert np.corrcoef(pcm, back)[0, 1] > 0.97


def test_the_corpus_bitrate_is_at_most_11_megabytes_per_hour() -> None:
    seconds = 20
    assert len(opus_file(_speechlike(seconds * RATE))) * 3600 / seconds < 11e6


def _speechlike(samples: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Buzz with a wandering pitch in syllables, all below 4 kHz."""
    times = np.arange(samples) / RATE
    phase = 2 * np.pi * (120 * times + 3 * np.sin(2 * np.pi * 1.3 * times))
    buzz = sum(np.sin(k * phase + k * k) / k for k in range(1, 25))
    return np.asarray(0.2 * buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * times)), np.float32)


def _lag(
    first: np.ndarray[tuple[int], np.dtype[np.float32]],
    second: np.ndarray[tuple[int], np.dtype[np.float32]],
) -> int:
    size = 2 * len(first)
    spectrum = np.fft.rfft(first, size).conj() * np.fft.rfft(second, size)
    place = int(np.argmax(np.fft.irfft(spectrum, size)))
    return place if place < len(first) else place - size
