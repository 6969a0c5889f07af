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
from dataclasses import replace
from pathlib import Path

import torch

from services.score.config import PositionsConfig
from services.score.model import Dit
from services.vae.config import VaeConfig
from training.distil import Distillation, DmdTask, Origin, RegressionTask
from training.flow import Flow, FlowLoss, initialised
from training.flow_task import FlowTask, asked_reader, reader_arguments
from training.learner import Recipe
from training.run import Budget, Task, run
from training.shipped import shipped_dit
from training.supply import Sources, Supply, opened, supply
from training.teacher import RECIPE

# A stream of few steps never meets low levels, so what learns in minutes leaves them out.
_FLOW = FlowLoss(shift=5.0, floor=0.4, mouth=8.0)
_DISTILLING = Recipe(rate=1e-4, warm_up=20, mean_decay=0.99, weight_decay=0.0)


def frozen(folder: Path, device: torch.device) -> Dit:
    return opened(folder, device).eval().requires_grad_(False)


def flow(asked: argparse.Namespace, start: Dit, supply: Supply) -> Task:
    return FlowTask(
        start,
        "causal",
        _FLOW,
        RECIPE,
        supply=supply,
        rows=asked.rows,
        device=asked.device,
        reader=asked_reader(asked, start.config),
        own_contexts=asked.own_contexts or (0.0, 0.0),
    )


def regression(asked: argparse.Namespace, start: Dit, supply: Supply) -> Task:
    return RegressionTask(start, origin(asked), _DISTILLING, supply=supply, rows=asked.rows)


def dmd(asked: argparse.Namespace, start: Dit, supply: Supply) -> Task:
    return DmdTask(
        start,
        opened(asked.teacher, asked.device),
        origin(asked),
        _distillation(asked.own_contexts),
        _DISTILLING,
        supply=supply,
        rows=asked.rows,
    )


def _distillation(own_contexts: tuple[float, float] | None) -> Distillation:
    if own_contexts is None:
        return Distillation()
    return Distillation(own_from=own_contexts[0], own_to=own_contexts[1])


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
    return ablated(
        opened(asked.start, asked.device),
        latents_per_chunk=asked.latents_per_chunk,
        anchor_channels=not asked.without_anchor_channels,
    )


def ablated(dit: Dit, *, latents_per_chunk: int, anchor_channels: bool) -> Dit:
    """The same weights in a model with other chunks, or blind to the anchor in its input."""
    config = replace(
        dit.config,
        stream=replace(dit.config.stream, latents_per_chunk=latents_per_chunk),
        positions=PositionsConfig(own=1 + latents_per_chunk),
        anchor=dit.config.anchor if anchor_channels else None,
    )
    if config == dit.config:
        return dit
    other, weights = Dit(config), dit.state_dict()
    entry = "patch_embedding.weight"
    weights[entry] = weights[entry][:, : config.in_channels]
    other.load_state_dict(weights)
    return other.to(dit.patch_embedding.weight.device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = {"flow": flow, "regression": regression, "dmd": dmd}
    parser.add_argument("stage", choices=stages)
    Sources.arguments(parser)
    parser.add_argument("--out", type=Path, required=True)
    Budget.arguments(parser)
    parser.add_argument("--rows", type=int, default=2, help="clips per step (%(default)s)")
    parser.add_argument("--start", type=Path, help="folder of the model to go on from")
    parser.add_argument("--teacher", type=Path, help="folder of the teacher")
    reader_arguments(parser)
    ablations = parser.add_argument_group("ablations")
    ablations.add_argument("--latents-per-chunk", type=int, default=3, help="(%(default)s)")
    ablations.add_argument("--without-anchor-channels", action="store_true")
    ablations.add_argument(
        "--own-contexts",
        type=float,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="share of contexts that are the student's own, in DMD from 0.2 to 0.8, in flow none; "
        "0 0 is no self-rollout",
    )
    asked = parser.parse_args()
    if asked.stage != "flow" and (asked.start is None or asked.teacher is None):
        parser.error(f"{asked.stage} needs --start and --teacher")
    torch.manual_seed(0)
    sources = Sources.of(asked)
    start = beginning(asked)
    fed = supply(sources, start.config, pool=96, block=4, period=8, held_out=8)
    task = stages[asked.stage](asked, start.to(sources.device), fed)
    run(task, asked.out, Budget.asked(asked))


if __name__ == "__main__":
    main()
