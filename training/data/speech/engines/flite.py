"""Flite: the voices slt, rms, awb and kal16 that come with it (CMU, permissive)."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from training.data.speech.audio import Pcm, normalised
from training.data.speech.engines.wav import read_wav
from training.data.speech.speech_engine import program


@dataclass(frozen=True, slots=True)
class Flite:
    """A `SpeechEngine`."""

    voice: str

    def speak(self, text: str, *, pace: float) -> Pcm:
        flite = program("flite", package="flite")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            stretch = f"duration_stretch={1 / pace:.4f}"
            subprocess.run(
                [flite, "-voice", self.voice, "--setf", stretch, "-t", text, "-o", path],
                check=True,
                capture_output=True,
            )
            return normalised(read_wav(path))
