"""Crops are their seed, and keep mouth and sound together."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.speech.audio import RATE
from training.data.speech.augment import Channel
from training.data.speech.corpus import Corpus
from training.data.speech.crops import Clip, CropPlan, SpeechSet
from training.data.speech.mouth import REST
from training.data.speech.split import Test, Train

PLANS = {
    "plain": CropPlan(silence=0, stretched=0),
    "stretched": CropPlan(silence=0, stretched=1),
    "channel": CropPlan(silence=0, channel=Channel()),
}


@pytest.fixture
def speech(corpus: Corpus) -> SpeechSet[Train]:
    return SpeechSet.of(corpus, Train)


@pytest.mark.parametrize("seconds", [0.5, 1.92, 3.0])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_crops_have_the_length_asked_for(
    plan: CropPlan, seconds: float, speech: SpeechSet[Train]
) -> None:
    crop = speech.crop(0, seconds, plan)
    assert len(crop.pcm) == round(seconds * RATE)
    assert crop.controls.shape == (round(seconds * 100), 6)
    assert crop.pcm.dtype == crop.controls.dtype == np.float32


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_seed_is_a_crop(plan: CropPlan, speech: SpeechSet[Train], corpus: Corpus) -> None:
    first, again = speech.crop(7, 2, plan), SpeechSet.of(corpus, Train).crop(7, 2, plan)
    np.testing.assert_array_equal(first.pcm, again.pcm)
    np.testing.assert_array_equal(first.controls, again.controls)
    assert np.abs(first.pcm - speech.crop(8, 2, plan).pcm).max() > 0.01


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_mouth_and_sound_stay_together(plan: CropPlan, speech: SpeechSet[Train]) -> None:
    """These voices are loud exactly while their lips are open."""
    lags = [_lag(speech.crop(seed, 3, plan)) for seed in range(6)]
    assert np.abs(lags).max() <= 2  # frames of 10 ms
    assert abs(np.mean(lags)) <= 1


def test_silent_crops_rest(speech: SpeechSet[Train]) -> None:
    crop = speech.crop(0, 1, CropPlan(silence=1))
    assert not crop.pcm.any()
    np.testing.assert_array_equal(crop.controls, np.tile(REST, (100, 1)))


def test_clips_are_the_corpus_and_voices_are_drawn_alike(
    corpus: Corpus, speech: SpeechSet[Train]
) -> None:
    clip = speech.of_voice("low")[0]
    row = next(row for row in speech.utterances if row.voice == "low")
    np.testing.assert_allclose(clip.pcm, corpus.sound(row), atol=1e-4)
    assert speech.seconds == pytest.approx(sum(row.seconds for row in speech.utterances))
    assert SpeechSet.of(corpus, Test).seconds > 0


def _lag(crop: Clip) -> int:
    """Frames by which loudness trails the opening, best correlation within 100 ms."""
    loudness = np.sqrt(np.square(crop.pcm).reshape(-1, 160).mean(1))
    opening = crop.controls[:, 0] * (1 - crop.controls[:, 3])
    scores = {lag: np.corrcoef(np.roll(loudness, -lag), opening)[0, 1] for lag in range(-10, 11)}
    return max(scores, key=lambda lag: scores[lag])
