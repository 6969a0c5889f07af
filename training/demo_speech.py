"""Put a few seconds of freely licensed speech beside the model: voices that no model learned from.

    python -m training.demo_speech --speech CORPUS --out models/tiny/speech

What they are and their licences: `training/data/speech/README.md`.
"""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import numpy as np

from training.data.speech.corpus import Corpus

_RATE = 16_000  # Hz
_LINES = {
    "welcome": ("k_test_high", ("h000", "h001", "h003")),
    "puppy": ("k_test_low", ("h015", "h052")),
    "dashwood": ("librivox", ("sense_and_sensibility_01_austen_64kb-0870",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speech", type=Path, required=True, help="folder of the speech corpus")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    corpus = Corpus.open(asked.speech)
    said = {(one.voice, one.line): one for one in corpus.utterances}
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, (voice, lines) in _LINES.items():
        pcm = np.concatenate([corpus.sound(said[voice, line]) for line in lines])
        with wave.open(str(asked.out / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, _RATE, 0, "NONE", ""))
            file.writeframes((pcm.clip(-1, 1) * 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    main()
