"""Train the bidirectional teacher.

latents → **teacher** → distil. It sees its whole clip and learns speaking, silence and the change
between them; now and then it loses speech or picture, so that it can be guided.

    python -m training.teacher --out RUN --minutes 60 --speech ... --vae ... --front-end ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from services.score.model import Dit
from services.vae.config import VaeConfig
from training.flow import FlowLoss, initialised
from training.flow_task import FlowTask, asked_reader, reader_arguments
from training.learner import Recipe
from training.run import Budget, run
from training.shipped import shipped_dit
from training.supply import Sources, opened, supply

RECIPE = Recipe(rate=1e-3, matrix_rate=3e-3)


def beginning(asked: argparse.Namespace) -> Dit:
    """A fresh model, or one of another run, whose causal weights then see all of a clip."""
    if asked.start is not None:
        return opened(asked.start, asked.device)
    return initialised(Dit(shipped_dit(VaeConfig.read(asked.vae))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Sources.arguments(parser)
    parser.add_argument("--out", type=Path, required=True)
    Budget.arguments(parser)
    parser.add_argument("--rows", type=int, default=2, help="clips per step (%(default)s)")
    parser.add_argument("--start", type=Path, help="folder of a model to go on from")
    reader_arguments(parser)
    asked = parser.parse_args()
    torch.manual_seed(0)
    sources, start = Sources.of(asked), beginning(asked)
    task = FlowTask(
        start,
        "whole",
        FlowLoss(deaf=0.1, blind=0.1),
        RECIPE,
        supply=supply(sources, start.config, pool=96, block=4, period=8, held_out=8),
        rows=asked.rows,
        device=sources.device,
        reader=asked_reader(asked, start.config),
    )
    run(task, asked.out, Budget.asked(asked))


if __name__ == "__main__":
    main()
