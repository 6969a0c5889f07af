"""espeak-ng: spelling to IPA for the neural voices, and a robotic voice for a few percent.

It runs as a program (GPL-3) while data is made; nothing of it is linked or shipped.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from training.data.speech.audio import Pcm, normalised
from training.data.speech.engines.wav import read_wav
from training.data.speech.speech_engine import program

_WORDS_PER_MINUTE = 165
_MARKS = ",.!?"


@dataclass(frozen=True, slots=True)
class Espeak:
    """A `SpeechEngine`."""

    voice: str  # a language with a variant, "en-us+f3"
    pitch: int = 50  # 0 to 99

    def speak(self, text: str, *, pace: float) -> Pcm:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            speed = str(round(_WORDS_PER_MINUTE * pace))
            options = ["-v", self.voice, "-p", str(self.pitch), "-s", speed, "-w", str(path)]
            _run(*options, text)
            return normalised(read_wav(path))


def spoken_parts(text: str) -> list[tuple[str, str]]:
    """IPA of each part of `text` with the mark that ends it ("" for none).

    Affricates and diphthongs come tied with U+0361's ASCII stand-in `^`: `t^ʃ`, `a^ɪ`.
    """
    parts = re.findall(rf"([^{_MARKS}]+)([{_MARKS}]?)", text)
    return [(_ipa(words.strip()), mark) for words, mark in parts if words.strip()]


def _ipa(words: str) -> str:
    lines = _run("-q", "--ipa=3", "--tie=^", "-v", "en-us", words)
    return " ".join(lines.split())


def _run(*arguments: str) -> str:
    command = [program("espeak-ng", package="espeak-ng"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
