"""A voice that needs no program: tones for syllables, and an aligner that knows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from training.data.speech.align import Unalignable
from training.data.speech.audio import RATE, Pcm
from training.data.speech.build import read
from training.data.speech.corpus import Corpus, VoicePack
from training.data.speech.phones import Phone, PhoneTrack, length
from training.data.speech.speech_engine import SpeechEngine, Unspeakable
from training.data.speech.split import Split
from training.data.speech.voices import Voice

_SYLLABLE = (("B", 8), ("AA", 17))  # frames: silent lips, then a loud open vowel
_EDGE = 30  # frames of silence before and after


@dataclass
class Tones:
    """A `SpeechEngine`: a buzz of four syllables at most, one a word, at its own pitch."""

    pitch: float = 120.0
    dumb: str = "\0"  # texts that contain it cannot be said
    spoken: int = 0

    def speak(self, text: str, *, pace: float) -> Pcm:
        if self.dumb in text:
            raise Unspeakable(text)
        self.spoken += 1
        loud = [_is_vowel(phone) for phone in syllables(text) for _ in range(phone.frames * 160)]
        times = np.arange(len(loud)) / RATE
        buzz = sum(np.sin(2 * np.pi * self.pitch * pace * k * times) / k for k in range(1, 25))
        return np.asarray(0.3 * buzz * np.array(loud), np.float32)


def syllables(text: str) -> PhoneTrack:
    words = min(4, len(text.split()))
    spoken = [Phone(name, frames) for _ in range(words) for name, frames in _SYLLABLE]
    return (Phone("SIL", _EDGE), *spoken, Phone("SIL", _EDGE))


def align(pcm: Pcm, text: str) -> PhoneTrack:
    assert len(pcm) == length(syllables(text)) * 160
    if "?" in text:
        raise Unalignable("questions do not align")
    return syllables(text)


def tones(name: str = "tones", split: Split = Split.TRAIN, pitch: float = 120.0) -> Voice:
    share = 1.0 if split is Split.TRAIN else 0.0
    return Voice(name, "tones", split, share, lambda: Tones(pitch))


@pytest.fixture
def read_into(tmp_path: Path) -> Callable[[Voice, float], VoicePack]:
    """Lets a voice read until so many seconds are in its pack under `tmp_path`."""

    def reading(voice: Voice, quota: float) -> VoicePack:
        pack = VoicePack(tmp_path, voice.name)
        read(voice, pack, quota=quota, align=align)
        return pack

    return reading


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two voices, some of whose lines are for testing. Not to be added to."""
    folder = tmp_path_factory.mktemp("speech")
    for voice in (tones("low"), tones("high", pitch=210)):
        read(voice, VoicePack(folder, voice.name), quota=8, align=align)
    return Corpus.open(folder)


def _is_vowel(phone: Phone) -> bool:
    return phone.name == "AA"


_: SpeechEngine = Tones()
