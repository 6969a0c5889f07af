"""What speaks: text in, sound out, nothing about time. All timing comes from one aligner.

Engines are in `engines/`; programs and packages that they need are installed for making a corpus
only, and a missing one is named when it is opened.
"""

from __future__ import annotations

import shutil
from typing import Protocol

from training.data.speech.audio import Pcm


class MissingTool(RuntimeError):
    """A program or package that is needed to make speech is not installed: which, and the cure."""


class SpeechEngine(Protocol):
    def speak(self, text: str, *, pace: float) -> Pcm:
        """`text` at 16 kHz; the same text and pace give the same sound.

        Args:
            pace: 1 is the voice's own, more is faster.

        Raises:
            Unspeakable: the engine made no sound of it.
        """
        ...


class Unspeakable(RuntimeError):
    """An engine made no sound of a text."""


def program(name: str, *, package: str) -> str:
    """The path of a program.

    Raises:
        MissingTool: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise MissingTool(f"{name} is not installed: apt-get install {package}")
    return path


def missing_package(name: str) -> MissingTool:
    """What to raise for a Python package that cannot be imported."""
    return MissingTool(f"{name} is not installed: pip install talkingmachines[data]")
