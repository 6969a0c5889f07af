"""Draw a few chunks of nobody before the first caller comes.

Above `engine.py`: compilers and the recording of graphs are paid for here, and the times measured
here decide about batches and admission until those of live sessions replace them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from services.score.config import DitConfig
from services.score.contract import Avatar, Chunk, Ended, LogTail, Mode, Rectangle, Speech
from services.score.engine import Engine

_FIRST = 2  # chunks that see a new shape: one without a finished chunk before it, one with
_MEASURED = 2


def rehearse(engine: Engine) -> None:
    """Run every shape that the engine's limits allow, in batches of 1 to `rows`.

    Raises:
        TalkingMachinesError: a session ended, so none would live.
    """
    limits, seconds = engine.limits, dict[int, float]()
    for faces in range(limits.faces if engine.config.audio else 1, 0, -1):
        seconds = {rows: _rehearsed(engine, rows, faces) for rows in range(1, limits.rows + 1)}
    engine.expect(seconds)  # of one face, as nearly all have


def _rehearsed(engine: Engine, rows: int, faces: int) -> float:
    """Seconds of a chunk in a batch of `rows`, after compilers have had their turn."""
    engine.expect({})  # what was measured while compiling would refuse the next session
    avatar = nobody(engine.config, faces=faces)
    names = [f"rehearsal-{number}" for number in range(rows)]
    for seed, name in enumerate(names):
        engine.open(name, avatar, seed=seed, tail=LogTail())
    _draw(engine, names, range(_FIRST), faces)
    engine.expect({})
    _draw(engine, names, range(_FIRST, _FIRST + _MEASURED), faces)
    measured = engine.stats().chunk_seconds[rows]
    for name in names:
        engine.close(name)
    return measured


def nobody(config: DitConfig, *, faces: int = 1) -> Avatar:
    """An avatar of zeros, whose every face is the whole picture."""
    text, clip = config.text, config.clip
    return Avatar(
        digest=f"nobody with {faces}",
        anchor=torch.zeros(config.latent.channels, 1, *config.latent_size),
        faces=(Rectangle(0, 0, 1, 1),) * faces if config.audio else (),
        text=torch.zeros(text.tokens, text.dim) if text else None,
        clip=torch.zeros(clip.tokens, clip.dim) if clip else None,
    )


def _draw(engine: Engine, names: Sequence[str], chunks: range, faces: int) -> None:
    spec = engine.spec
    pcm = np.zeros(spec.samples_per_chunk + spec.lookahead_samples, np.int16)
    speech = (Speech(Mode.SPEAKING, pcm),) * faces if engine.config.audio else ()
    for number in chunks:
        for name in names:
            engine.submit(name, Chunk(turn=0, chunk=number, speech=speech, slack=3600))
        for outcome in (*engine.step(), *engine.settle()):
            if isinstance(outcome, Ended):
                raise outcome.error
