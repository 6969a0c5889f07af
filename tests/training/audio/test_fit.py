"""A run learns, resumes exactly, and is graded through the front end that is served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.score.frontend.config import MelFrontEnd
from services.score.frontend.features import whole_clip
from tests.training.speech.conftest import align, tones
from training.audio.batches import BatchConfig, Batches, spectrum
from training.audio.fit import Fit, FitConfig
from training.audio.report import compared, hear, report, table
from training.data.speech.build import read
from training.data.speech.corpus import Corpus, VoicePack
from training.data.speech.crops import SpeechSet
from training.data.speech.mouth import CONTROLS
from training.data.speech.split import Test, Train

SMALL = FitConfig(
    front_end=MelFrontEnd(width=24, dilations=(1, 2)),
    batches=BatchConfig(crops=4, seconds=1.6, pool=6),
    steps=24,
    save_every=8,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("speech")
    read(tones("low"), VoicePack(folder, "low"), quota=6, align=align)
    return Corpus.open(folder)


@pytest.fixture(scope="module")
def speech(corpus: Corpus) -> SpeechSet[Train]:
    return SpeechSet.of(corpus, Train)


def test_a_run_learns_and_saves(tmp_path: Path, speech: SpeechSet[Train], corpus: Corpus) -> None:
    said: list[str] = []
    fit = Fit(tmp_path, speech, SMALL)
    untrained = next(report(fit.encoder, SpeechSet.of(corpus, Test)))
    fit.run(SMALL.steps, said.append)
    first, *_, last = (float(line.split()[3]) for line in said)
    assert last < 0.8 * first
    assert len(said) == 3
    fit.standardise()
    trained = next(report(fit.encoder, SpeechSet.of(corpus, Test)))
    assert trained.opening > max(0.5, untrained.opening)
    assert trained.lag == 0


def test_a_run_in_two_parts_equals_one_run(tmp_path: Path, speech: SpeechSet[Train]) -> None:
    whole = Fit(tmp_path / "whole", speech, SMALL)
    whole.run(12, _silent)
    Fit(tmp_path / "parts", speech, SMALL).run(5, _silent)
    rest = Fit(tmp_path / "parts", speech, SMALL)
    assert rest.step == 5
    rest.run(12, _silent)
    for ours, theirs in zip(whole.encoder.parameters(), rest.encoder.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_batch_is_its_step(speech: SpeechSet[Train]) -> None:
    wandering = Batches(speech, SMALL.front_end, SMALL.batches, seed=3)
    for step in (0, 4, 9):
        wandering.at(step)
    straight = Batches(speech, SMALL.front_end, SMALL.batches, seed=3)
    for ours, theirs in zip(wandering.at(10), straight.at(10), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_batches_have_a_mouth_for_every_feature(speech: SpeechSet[Train]) -> None:
    spectra, mouths = Batches(speech, SMALL.front_end, SMALL.batches, seed=0).at(0)
    assert spectra.shape == (4, 160, SMALL.front_end.mel.bands)
    assert mouths.shape == (4, 40, len(CONTROLS))


def test_what_is_trained_is_what_is_served(tmp_path: Path, speech: SpeechSet[Train]) -> None:
    """The served front end gives for feature n what training compared with mouth n."""
    encoder = Fit(tmp_path, speech, SMALL).encoder
    clip = speech.of_voice("low")[0]
    with torch.no_grad():
        _, controls, _ = encoder(spectrum(clip, encoder.mel)[None], encoder.no_past(1))
    heard = hear(encoder, clip)
    ahead = SMALL.front_end.lookahead
    early = -(-SMALL.front_end.history_samples // SMALL.front_end.hop)
    trained = controls[0, ahead + early :].numpy()
    np.testing.assert_allclose(heard[early : early + len(trained)], trained, atol=1e-5)


def test_standardised_features_have_the_stated_spread(
    tmp_path: Path, speech: SpeechSet[Train]
) -> None:
    fit = Fit(tmp_path, speech, SMALL)
    before = hear(fit.encoder, speech.of_voice("low")[0])
    fit.standardise()
    after = hear(fit.encoder, speech.of_voice("low")[0])
    np.testing.assert_allclose(after, before, atol=1e-4)
    clips = [torch.from_numpy(clip.pcm)[None] for clip in speech.of_voice("low")]
    features = torch.cat([whole_clip(fit.encoder, clip)[0] for clip in clips])
    spread = features.std(0)
    assert spread[: SMALL.front_end.width].median() < 0.4
    assert 0.3 < spread[SMALL.front_end.width :].median() < 3


def test_grades_find_lag_and_closures() -> None:
    draw = np.random.default_rng(0)
    true = draw.random((400, len(CONTROLS))).astype(np.float32)
    true[:, 3] = (draw.random(400) < 0.1) * 1.0
    perfect = compared("v", 16, true, true)
    assert perfect.opening == pytest.approx(1)
    assert perfect.lag == 0
    assert perfect.closures == 1
    late = compared("v", 16, np.roll(true, 2, axis=0), true)
    assert late.lag == 2
    lips_open = true.copy()
    lips_open[:, 3] = 1e-3 * draw.random(400)
    assert compared("v", 16, lips_open, true).closures == 0
    assert table([perfect]).count("1.00") == len(CONTROLS) + 2


def _silent(line: str) -> None:
    """Say nothing."""
