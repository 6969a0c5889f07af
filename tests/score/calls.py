"""Calls with a small engine: avatars, speech that can be heard again, logs that can be cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from services.score.config import DitConfig
from services.score.contract import (
    Avatar,
    Chunk,
    Drawn,
    Ended,
    LogTail,
    Mode,
    PastChunk,
    Rectangle,
    Speech,
)
from services.score.engine import Engine, Hands, Limits
from services.score.frontend.config import MelFrontEnd
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.parallel import Alone, Solo
from services.score.worker import Team, Worker
from tests.score import small

SEED = 2**63 + 5


def ears(config: DitConfig) -> SpeechEncoder | None:
    if config.audio is None:
        return None
    assert isinstance(config.audio.front_end, MelFrontEnd)
    torch.manual_seed(1)
    encoder = SpeechEncoder(config.audio.front_end).requires_grad_(False)
    encoder.offset.normal_()
    encoder.scale.uniform_(0.5, 2)
    return encoder


def worker(config: DitConfig, *, rows: int = 1, team: Team | None = None) -> Worker:
    return Worker(
        small.model(config),
        rows=rows,
        team=team or Alone(),
        capture=None,
        latent_dtype=torch.float32,
    )


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def engine(
    config: DitConfig,
    *,
    hands: Hands | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    clock: Callable[[], float] | None = None,
) -> Engine:
    hands = hands or Solo(worker(config, rows=limits.rows))
    return Engine(config, hands, ears(config), limits=limits, clock=clock or Clock())


def avatar(config: DitConfig, name: str = "ada", *, faces: int = 1) -> Avatar:
    generator = torch.Generator().manual_seed(sum(name.encode()))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sides = [Rectangle(n / faces, 0.1, (n + 1) / faces, 0.9) for n in range(faces)]
    return Avatar(
        digest=name,
        anchor=draw(config.latent.channels, 1, *config.latent_size),
        faces=tuple(sides) if config.audio else (),
        text=draw(3, config.text.dim) if config.text else None,
        listening_text=draw(2, config.text.dim) if config.text else None,
        clip=draw(config.clip.tokens, config.clip.dim) if config.clip else None,
    )


@dataclass
class Call:
    """One side of a session: what it says, and the log of what came back."""

    config: DitConfig
    name: str = "call"
    faces: int = 1
    seed: int = SEED
    turn: int = 0
    log: list[PastChunk] = field(default_factory=list)

    def speech(self, chunk: int) -> tuple[Speech, ...]:
        """A function of name, face and chunk; every fourth chunk is listened through."""
        if self.config.audio is None:
            return ()
        spec = self.config.spec
        said = []
        for face in range(self.faces):
            parts = [self._said(face, n) for n in (chunk, chunk + 1, chunk + 2)]
            pcm = np.concatenate(parts)[: spec.samples_per_chunk + spec.lookahead_samples]
            mode = Mode.LISTENING if (chunk + face) % 4 == 3 else Mode.SPEAKING
            said.append(Speech(mode, pcm))
        return tuple(said)

    def _said(self, face: int, chunk: int) -> np.ndarray:
        key = [sum(self.name.encode()), face, chunk, self.turn]
        shape = self.config.spec.samples_per_chunk
        return np.random.default_rng(key).integers(-8000, 8000, shape, dtype=np.int16)

    def next(self, slack: float = 1.0) -> Chunk:
        return Chunk(self.turn, len(self.log), self.speech(len(self.log)), slack)

    def take(self, outcomes: Sequence[Drawn | Ended]) -> Tensor:
        """Log this call's result among `outcomes`."""
        (mine,) = [one for one in outcomes if one.session == self.name]
        assert isinstance(mine, Drawn), mine
        assert (mine.turn, mine.chunk) == (self.turn, len(self.log))
        self.log.append(PastChunk(mine.chunk, self.speech(mine.chunk), mine.latents))
        return mine.latents

    def tail(self, engine: Engine) -> LogTail:
        return LogTail(tuple(self.log[-engine.tail.speech :]))

    def open(self, engine: Engine) -> None:
        who = avatar(self.config, faces=self.faces)
        engine.open(self.name, who, seed=self.seed, tail=self.tail(engine), turn=self.turn)

    def draw(self, engine: Engine, chunks: int = 1) -> Tensor:
        """[chunks, C, F, h, w], one after the other."""
        drawn = []
        for _ in range(chunks):
            engine.submit(self.name, self.next())
            drawn.append(self.take(engine.step()))
            assert engine.settle() == []
        return torch.stack(drawn)
