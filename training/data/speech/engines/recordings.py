"""A person reading: five LibriVox clips from Debian's pocketsphinx-testdata. For testing only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from training.data.speech.audio import Pcm, normalised
from training.data.speech.engines.wav import read_wav
from training.data.speech.script import Line
from training.data.speech.speech_engine import MissingTool, Unspeakable
from training.data.speech.split import Split

_LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")


@dataclass(frozen=True, slots=True)
class Recordings:
    """A `SpeechEngine` that can say only what was recorded, at the pace it was said."""

    folder: Path = _LIBRIVOX

    def speak(self, text: str, *, pace: float) -> Pcm:  # noqa: ARG002 (a person has one pace)
        for line in self.script():
            if line.text == text:
                return normalised(read_wav(self.folder / f"{line.name}.wav"))
        raise Unspeakable(f"never recorded: {text!r}")

    def script(self) -> list[Line]:
        """What was recorded, named by file.

        Raises:
            MissingTool: the recordings are not installed.
        """
        path = self.folder / "transcription"
        if not path.exists():
            package = "pocketsphinx-testdata"
            raise MissingTool(f"{package} is not installed: apt-get install {package}")
        rows = re.findall(r"<s>(.*)</s> \((\S+)\)", path.read_text("utf-8"))
        return [Line(name, text.strip(), Split.TEST) for text, name in rows]
