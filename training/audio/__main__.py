"""`python -m training.audio --speech DIR --out DIR`: train the speech encoder, then grade it.

Writes `state.pt` (to go on from), `encoder.safetensors` and `report.md`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from services.score.frontend.config import MelFrontEnd
from training.audio.fit import Fit, FitConfig
from training.audio.report import report, table
from training.data.speech.corpus import Corpus
from training.data.speech.crops import SpeechSet
from training.data.speech.split import Test, Train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.audio", description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder of the speech corpus")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=3000, help="in all (%(default)s)")
    parser.add_argument("--lookahead", type=int, default=2, help="features of 40 ms (%(default)s)")
    parser.add_argument("--width", type=int, default=128, help="channels (%(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    front_end = MelFrontEnd(width=given.width, lookahead=given.lookahead)
    corpus = Corpus.open(given.speech)
    fit = Fit(
        given.out,
        SpeechSet.of(corpus, Train),
        FitConfig(front_end=front_end, steps=given.steps),
    )
    fit.run(given.steps, lambda line: print(line, flush=True))
    fit.standardise()
    save_file(fit.encoder.state_dict(), given.out / "encoder.safetensors")
    grades = table(list(report(fit.encoder, SpeechSet.of(corpus, Test))))
    (given.out / "report.md").write_text(grades + "\n", "utf-8")
    print(grades)


if __name__ == "__main__":
    main()
