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


def rehearse(engine: Engine, *, rows: int) -> None:
    """Run every shape that sessions with one face will need, in batches of 1 to `rows`.

    Raises:
        TalkingMachinesError: a session ended, so none would live.
    """
    seconds: dict[int, float] = {}
    avatar = nobody(engine.config)
    for count in range(1, rows + 1):
        engine.expect({})  # what was measured while compiling would refuse the next session
        names = [f"rehearsal-{number}" for number in range(count)]
        for seed, name in enumerate(names):
            engine.open(name, avatar, seed=seed, tail=LogTail())
        _draw(engine, names, range(_FIRST))
        engine.expect({})
        _draw(engine, names, range(_FIRST, _FIRST + _MEASURED))
        seconds[count] = engine.stats().chunk_seconds[count]
        for name in names:
            engine.close(name)
    engine.expect(seconds)


def nobody(config: DitConfig) -> Avatar:
    """An avatar of zeros, whose face is the whole picture."""
    text, clip = config.text, config.clip
    return Avatar(
        digest="nobody",
        anchor=torch.zeros(config.latent.channels, 1, *config.latent_size),
        faces=(Rectangle(0, 0, 1, 1),) if config.audio else (),
        text=torch.zeros(text.tokens, text.dim) if text else None,
        clip=torch.zeros(clip.tokens, clip.dim) if clip else None,
    )


def silence(config: DitConfig, mode: Mode = Mode.SPEAKING) -> tuple[Speech, ...]:
    """A chunk of zeros for `nobody`, spoken or not."""
    if config.audio is None:
        return ()
    spec = config.spec
    pcm = np.zeros(spec.samples_per_chunk + spec.lookahead_samples, np.int16)
    return (Speech(mode, pcm),)


def _draw(engine: Engine, names: Sequence[str], chunks: range) -> None:
    for number in chunks:
        for name in names:
            speech = silence(engine.config)
            engine.submit(name, Chunk(turn=0, chunk=number, speech=speech, slack=3600))
        for outcome in (*engine.step(), *engine.settle()):
            if isinstance(outcome, Ended):
                raise outcome.error
