"""Train the student that ships, stage by stage; each takes up where the one before ended.

    python -m training.student flow       --out S1 ...                 real contexts, flow matching
    python -m training.student regression --out S2 --start S1/export --teacher T/export ...
    python -m training.student dmd        --out S3 --start S2/export --teacher T/export ...

`flow` may start from a teacher (`--start T/export`), whose weights it then sees causally, or from
nothing. Distil only what `training.evaluate` finds better in eight steps than in two: a student
that copies an origin that has not converged gets worse.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from services.score.checkpoint.loading import load
from services.score.checkpoint.opening import open_checkpoint
from services.score.model import Dit
from services.vae.config import VaeConfig
from training.distil import Distillation, DmdTask, Origin, RegressionTask
from training.flow import Flow, FlowLoss, initialised
from training.flow_task import FlowTask
from training.learner import Recipe
from training.mouth_reader import load_reader
from training.run import Budget, Task, run
from training.shipped import shipped_dit
from training.supply import Sources, Supply, supply
from training.teacher import RECIPE

_DISTILLING = Recipe(rate=1e-4, warm_up=20, mean_decay=0.99, weight_decay=0.0)


def opened(folder: Path, device: torch.device) -> Dit:
    """A model of another run, ready to learn."""
    dit = load(open_checkpoint(folder), device=device, dtype=torch.float32)
    return dit.train().requires_grad_(True)


def frozen(folder: Path, device: torch.device) -> Dit:
    return opened(folder, device).eval().requires_grad_(False)


def flow(asked: argparse.Namespace, start: Dit, supply: Supply) -> Task:
    reader = None
    if asked.reader is not None:
        latent = start.config.latent
        network = load_reader(asked.reader, latent.channels, latent.stride[0], asked.device)
        reader = (network, asked.reader_weight)
    return FlowTask(
        start,
        "causal",
        FlowLoss(),
        RECIPE,
        supply=supply,
        rows=asked.rows,
        device=asked.device,
        reader=reader,
    )


def regression(asked: argparse.Namespace, start: Dit, supply: Supply) -> Task:
    return RegressionTask(start, origin(asked), _DISTILLING, supply=supply, rows=asked.rows)


def dmd(asked: argparse.Namespace, start: Dit, supply: Supply) -> Task:
    return DmdTask(
        start,
        opened(asked.teacher, asked.device),
        origin(asked),
        Distillation(own_from=asked.own_contexts[0], own_to=asked.own_contexts[1]),
        _DISTILLING,
        supply=supply,
        rows=asked.rows,
    )


def origin(asked: argparse.Namespace) -> Origin:
    """The teacher, sampled as it was trained to be: 12 steps with guidance, 24 evaluations."""
    return Origin(Flow(frozen(asked.teacher, asked.device), "whole"))


def beginning(asked: argparse.Namespace) -> Dit:
    """The model of the stage before, or a fresh one."""
    if asked.start is None:
        config = shipped_dit(
            VaeConfig.read(asked.vae),
            latents_per_chunk=asked.latents_per_chunk,
            anchor_channels=not asked.without_anchor_channels,
        )
        return initialised(Dit(config))
    return opened(asked.start, asked.device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = {"flow": flow, "regression": regression, "dmd": dmd}
    parser.add_argument("stage", choices=stages)
    Sources.arguments(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training, over all calls")
    parser.add_argument("--call-minutes", type=float, help="end this call earlier")
    parser.add_argument("--rows", type=int, default=2, help="clips per step (%(default)s)")
    parser.add_argument("--start", type=Path, help="folder of the model to go on from")
    parser.add_argument("--teacher", type=Path, help="folder of the teacher")
    parser.add_argument("--reader", type=Path, help="a reader of latents that pulls at the mouth")
    parser.add_argument("--reader-weight", type=float, default=2.0)
    ablations = parser.add_argument_group("ablations")
    ablations.add_argument("--latents-per-chunk", type=int, default=3, help="of a fresh student")
    ablations.add_argument("--without-anchor-channels", action="store_true")
    ablations.add_argument(
        "--own-contexts",
        type=float,
        nargs=2,
        default=(0.2, 0.8),
        metavar=("FIRST", "LAST"),
        help="share of contexts in DMD that are the student's own; 0 0 is no self-rollout",
    )
    asked = parser.parse_args()
    if asked.stage != "flow" and (asked.start is None or asked.teacher is None):
        parser.error(f"{asked.stage} needs --start and --teacher")
    torch.manual_seed(0)
    sources = Sources.of(asked)
    start = beginning(asked)
    fed = supply(sources, start.config, pool=96, block=4, period=8, held_out=8)
    task = stages[asked.stage](asked, start.to(sources.device), fed)
    run(task, asked.out, Budget(asked.minutes, call_minutes=asked.call_minutes))


if __name__ == "__main__":
    main()
