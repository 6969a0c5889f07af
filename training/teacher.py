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
from training.flow_task import FlowTask
from training.learner import Recipe
from training.run import Budget, run
from training.shipped import shipped_dit
from training.supply import Sources, supply

RECIPE = Recipe(rate=1e-3, matrix_rate=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    Sources.arguments(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training, over all calls")
    parser.add_argument("--call-minutes", type=float, help="end this call earlier")
    parser.add_argument("--rows", type=int, default=2, help="clips per step (%(default)s)")
    asked = parser.parse_args()
    sources, config = Sources.of(asked), shipped_dit(VaeConfig.read(asked.vae))
    torch.manual_seed(0)
    task = FlowTask(
        initialised(Dit(config)),
        "whole",
        FlowLoss(deaf=0.1, blind=0.1),
        RECIPE,
        supply=supply(sources, config, pool=96, block=4, period=8, held_out=8),
        rows=asked.rows,
        device=sources.device,
    )
    run(task, asked.out, Budget(asked.minutes, call_minutes=asked.call_minutes))


if __name__ == "__main__":
    main()
