"""Clips say what their mouths show, and who listens is silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.speech.conftest import align, tones
from training.data.speech.build import read
from training.data.speech.corpus import Corpus, VoicePack
from training.data.speech.crops import CropPlan, SpeechSet
from training.data.speech.split import Train
from training.footage import Geometry
from training.measure import correlation
from training.speaker import CorpusSpeaker, training_plan

GEOMETRY = Geometry()
CLEAN = CropPlan(silence=0.0, stretched=0.0)


@pytest.fixture
def speech(tmp_path: Path) -> SpeechSet[Train]:
    read(tones(), VoicePack(tmp_path, "tones"), quota=20, align=align)
    return SpeechSet.of(Corpus.open(tmp_path), Train)


def loudness(speech: torch.Tensor) -> torch.Tensor:
    """Per video frame of the clip."""
    heard = speech[GEOMETRY.run_in :][: GEOMETRY.frames * 640].double()
    return heard.view(-1, 640).square().mean(1).sqrt()


def test_mouths_open_when_sound_comes(speech: SpeechSet[Train]) -> None:
    speaker = CorpusSpeaker(speech, GEOMETRY, CLEAN, turns=0)
    said = [speaker.say(number) for number in range(8)]
    loud = torch.cat([loudness(one.speech) for one in said])
    apart = torch.cat([one.controls[:, 0] for one in said])
    assert correlation(loud, apart) > 0.8
    assert said[0].speech.shape == (GEOMETRY.samples,)
    assert said[0].controls.shape == (48, 6)


def test_who_listens_is_silent_and_closed(speech: SpeechSet[Train]) -> None:
    speaker = CorpusSpeaker(speech, GEOMETRY, CLEAN, turns=1)
    for number in range(6):
        said = speaker.say(number)
        begins = int(said.begins)
        assert begins in (1, 2, 3)
        assert not said.speech[: GEOMETRY.run_in + begins * 7680].any()
        assert not said.controls[: begins * 12, 0].any()
        assert not said.speaking[: begins * 12].any()
        assert said.speaking[begins * 12 + 1 :].all()


def test_silence_is_sometimes_listened_to_and_sometimes_heard(speech: SpeechSet[Train]) -> None:
    speaker = CorpusSpeaker(speech, GEOMETRY, CropPlan(silence=1.0), turns=0.5)
    begins = {int(speaker.say(number).begins) for number in range(20)}
    assert begins == {0, GEOMETRY.chunks}


def test_a_number_is_a_clip(speech: SpeechSet[Train]) -> None:
    one, again = (CorpusSpeaker(speech, GEOMETRY, training_plan()).say(3) for _ in range(2))
    assert np.array_equal(one.speech.numpy(), again.speech.numpy())
    assert torch.equal(one.controls, again.controls)
