"""Who speaks, how much of the corpus, and what for. Licences: `README.md` beside this file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from training.data.speech.engines.espeak import Espeak
from training.data.speech.engines.flite import Flite
from training.data.speech.engines.kokoro import Blend, Kokoro
from training.data.speech.engines.piper import Piper
from training.data.speech.engines.recordings import Recordings
from training.data.speech.script import Line, read_script
from training.data.speech.speech_engine import SpeechEngine
from training.data.speech.split import Split


@dataclass(frozen=True, slots=True)
class Voice:
    name: str
    engine: str  # for people and tables
    split: Split
    share: float  # of the training hours, relative to the other voices'; 0 for test voices
    open: Callable[[], SpeechEngine]  # loads weights: once per process
    pace: float = 1.0  # at which it sounds natural; each utterance varies around it

    def held_out(self) -> list[Line]:
        """What it reads for testing: everything held out, or as a trained voice a few lines."""
        lines = Recordings().script() if self.engine == "librivox" else read_script(Split.TEST)
        return lines if self.split is Split.TEST else lines[::10]


def roster() -> list[Voice]:
    """Every voice. The style "tebukuro" is heard in the test blends alone."""
    kokoro: list[tuple[str, Blend]] = [
        ("k_alpha", (1.0, 0.0, 0.0, 0.0, 0.0)),
        ("k_gongitsune", (0.0, 1.0, 0.0, 0.0, 0.0)),
        ("k_nezumi", (0.0, 0.0, 1.0, 0.0, 0.0)),
        ("k_kumo", (0.0, 0.0, 0.0, 0.0, 1.0)),
        ("k_dawn", (0.5, 0.0, 0.0, 0.0, 0.5)),
        ("k_brook", (0.0, 0.3, 0.2, 0.0, 0.5)),
        ("k_stone", (0.0, 0.0, 0.25, 0.0, 0.75)),
        ("k_reed", (0.5, 0.5, 0.0, 0.0, 0.0)),
        ("k_moss", (0.0, 0.25, 0.0, 0.0, 0.75)),
        ("k_gull", (0.35, 0.0, 0.65, 0.0, 0.0)),
    ]
    return [
        *(_voice(name, "flite", 1.6, partial(Flite, name)) for name in _FLITE),
        *(_voice(name, "kokoro", 1.0, partial(Kokoro, blend), 1.1) for name, blend in kokoro),
        _voice("e_male", "espeak", 0.3, partial(Espeak, "en-us+m3", 45)),
        _voice("e_female", "espeak", 0.3, partial(Espeak, "en-us+f3", 60)),
        _voice("k_test_high", "kokoro", 0, partial(Kokoro, (0.0, 0.0, 0.0, 1.0, 0.0)), 1.1),
        _voice("k_test_low", "kokoro", 0, partial(Kokoro, (0.0, 0.0, 0.0, 0.4, 0.6)), 1.1),
        _voice("joe", "piper", 0, Piper),
        _voice("librivox", "librivox", 0, Recordings),
    ]


_FLITE = ("slt", "rms", "awb", "kal16")


def _voice(
    name: str, engine: str, share: float, open_: Callable[[], SpeechEngine], pace: float = 1.0
) -> Voice:
    split = Split.TRAIN if share else Split.TEST
    return Voice(name, engine, split, share, open_, pace)
