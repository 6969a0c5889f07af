"""How much of a session's past must be replayed when it moves: python -m benchmarks.replay

With `context: own` one chunk rebuilds a session exactly. Models whose context passes also saw
earlier chunks carry history in hidden states; here, what the first chunk after a move differs from
the chunk of the session that stayed (root mean square, relative), against the chunks replayed.
Weights are random: trained ones may forget faster or slower. A model of Y layers is exact with Y.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.machine import CPU
from benchmarks.record import Figure, record
from benchmarks.score import Setting, draw, front_end, random_model
from services.score.config import ContextConfig, DitConfig, S2vAudio
from services.score.contract import LogTail, PastChunk
from services.score.engine import Engine, Limits
from services.score.frontend.config import MelFrontEnd
from services.score.machine import employ
from services.score.model import Dit
from services.score.parallel import Solo
from services.score.presets import preset
from services.score.rehearsal import nobody

STAYED = 9  # chunks before the move
REPLAYS = (1, 2, 3, 4, 6)


def main() -> None:
    table = {
        policy: {
            replay: error(tiny(ContextConfig(policy=policy, replay=replay))) for replay in REPLAYS
        }
        for policy in ("window", "kept")
    } | {"own": {1: error(tiny(ContextConfig()))}}
    table |= {
        recipe: {replay: error(student(recipe, replay)) for replay in REPLAYS}
        for recipe in ("realvideo", "liveavatar")
    }
    for policy, errors in table.items():
        print(policy, *(f"R={replay}: {value:.1e}" for replay, value in errors.items()), sep="  ")
    errors = {
        f"error after one chunk of replay, {policy}": Figure(errors[1], "of the latents' spread")
        for policy, errors in table.items()
    }
    record("score-replay", errors, {"preset": "tiny, random weights", "error": table})


def tiny(context: ContextConfig) -> DitConfig:
    return replace(preset("tiny"), context=context)


def student(recipe: str, replay: int) -> DitConfig:
    """A public student's way of drawing over six narrow layers that hear log-mel."""
    published, ears = preset(recipe), MelFrontEnd()
    assert published.audio is not None
    assert isinstance(published.audio.adapter, S2vAudio)
    return replace(
        published,
        dim=256,
        ffn_dim=768,
        heads=4,
        layers=6,
        text=None,
        audio=replace(
            published.audio,
            adapter=replace(published.audio.adapter, states=1, layers=(0, 4)),
            front_end=ears,
            embedding_dim=ears.outputs,
        ),
        stream=replace(published.stream, width=128, height=128),
        context=replace(published.context, replay=replay),
    )


def error(config: DitConfig) -> float:
    """Of the first chunk after a move."""
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
