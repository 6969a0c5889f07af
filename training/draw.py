"""Draw a shelf of clips ahead of time: what a CPU does while another learns.

    python -m training.draw --speech S --shelf DIR --clips 500 [--first 0] [--still 0.75]

Clips that are on the shelf already stay, so several processes may share the work, each from its own
number on, and a cut call goes on. What learns from the shelf later draws nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from training.data.speech.corpus import Corpus
from training.footage import Footage, Geometry
from training.rows import Keep
from training.shipped import SIDE
from training.supply import studio

_TOGETHER = 4  # clips: the compiled renderer draws so many frames at once


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--speech", type=Path, required=True, help="folder of the speech corpus")
    add("--shelf", type=Path, required=True)
    add("--first", type=int, default=0, help="number of the first clip (%(default)s)")
    add("--clips", type=int, required=True, help="how many")
    add("--still", type=float, default=0.35, help="share of heads that keep still (%(default)s)")
    add("--human", type=float, default=0.3, help="share of human faces (%(default)s)")
    add("--compiled", action="store_true", help="compile the renderer first")
    asked = parser.parse_args()
    maker = studio(
        Corpus.open(asked.speech),
        Geometry(size=SIDE),
        torch.device("cpu"),
        still=asked.still,
        human=asked.human,
        compiled=asked.compiled,
    )
    last = asked.first + asked.clips
    shelf = Keep(asked.shelf, last).of("footage").shelf(Footage, maker.make)
    for number in range(asked.first, last, _TOGETHER):
        shelf.fill(range(number, min(number + _TOGETHER, last)))
        sys.stdout.write(f"{number + _TOGETHER - asked.first} of {asked.clips}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
