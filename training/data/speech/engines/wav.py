"""WAV files, as the engines' programs write them and corpora of recordings hold them."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from training.data.speech.audio import RATE, Pcm, resampled
from training.data.speech.speech_engine import Unspeakable


def read_wav(path: Path) -> Pcm:
    """A mono 16-bit file at 16 kHz, resampled if it has another rate.

    Raises:
        Unspeakable: the file is empty or not 16-bit mono.
    """
    with wave.open(str(path)) as file:
        if file.getnchannels() != 1 or file.getsampwidth() != 2 or not file.getnframes():
            raise Unspeakable(f"{path.name}: no 16-bit mono sound")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        pcm = samples.astype(np.float32) * np.float32(1 / 32768)
        return resampled(pcm, RATE / file.getframerate())
