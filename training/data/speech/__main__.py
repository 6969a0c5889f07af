"""`python -m training.data.speech --out DIR`: make the speech corpus, or go on making it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.data.speech.build import build
from training.data.speech.corpus import BeingWritten
from training.data.speech.speech_engine import MissingTool
from training.data.speech.voices import roster


def main() -> None:
    names = [voice.name for voice in roster()]
    parser = argparse.ArgumentParser(prog="python -m training.data.speech", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--hours", type=float, default=3.0, help="training speech (%(default)s)")
    parser.add_argument("--voices", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    given = parser.parse_args()
    try:
        for tally in build(given.out, hours=given.hours, voices=given.voices, jobs=given.jobs):
            print(
                f"{tally.voice:13} {tally.utterances:4} utterances {tally.seconds / 60:6.1f} min"
                f" {tally.dropped:3} dropped",
                flush=True,
            )
    except (MissingTool, BeingWritten) as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    main()
