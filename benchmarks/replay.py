"""How much of a session's past must be replayed when it moves: python benchmarks/replay.py

With `context: own` one chunk rebuilds a session exactly. Models whose context passes also saw
earlier chunks carry history in hidden states; here, what the first chunk after a move differs from
the chunk of the session that stayed (root mean square, relative), against the chunks replayed.
Weights are random: trained ones may forget faster or slower. A model of Y layers is exact with Y.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import described
from benchmarks.score import RESULTS, Setting, draw, front_end, random_model
from services.score.config import ContextConfig, DitConfig
from services.score.contract import LogTail, PastChunk
from services.score.engine import Engine, Limits
from services.score.machine import employ
from services.score.model import Dit
from services.score.parallel import Solo
from services.score.presets import preset
from services.score.rehearsal import nobody

CPU = torch.device("cpu")
STAYED = 9  # chunks before the move
REPLAYS = (1, 2, 3, 4, 6)


def main() -> None:
    table = {
        policy: {replay: error(ContextConfig(policy=policy, replay=replay)) for replay in REPLAYS}
        for policy in ("window", "kept")
    } | {"own": {1: error(ContextConfig())}}
    for policy, errors in table.items():
        print(policy, *(f"R={replay}: {value:.1e}" for replay, value in errors.items()), sep="  ")
    result = {"preset": "tiny, random weights", "machine": described(CPU), "error": table}
    (RESULTS / "replay.json").write_text(json.dumps(result, indent=2) + "\n")


def error(context: ContextConfig) -> float:
    """Of the first chunk after a move."""
    config = replace(preset("tiny"), context=context)
    torch.manual_seed(0)
    model = lively(random_model(Setting(config, CPU, torch.float32, rows=1, chunks=0)))
    log: list[PastChunk] = []
    stays = opened(config, model, log)
    for _ in range(STAYED):
        draw(stays, log)
    stays.settle()
    moves, moved = opened(config, model, log), list(log)
    draw(stays, log)
    draw(moves, moved)
    expected, got = log[-1].latents, moved[-1].latents
    assert expected is not None
    assert got is not None
    return float((got - expected).square().mean().sqrt() / expected.std())


def lively(model: Dit) -> Dit:
    """Weights large enough that attention is sharp and layers matter."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
    return model


def opened(config: DitConfig, model: Dit, log: list[PastChunk]) -> Engine:
    torch.manual_seed(1)
    hands = Solo(employ(model, latent_dtype=torch.float32))
    engine = Engine(config, hands, front_end(config), limits=Limits())
    tail = LogTail(tuple(log[-engine.tail.speech :]))
    engine.open("call", nobody(config), seed=1, tail=tail)
    return engine


if __name__ == "__main__":
    main()
