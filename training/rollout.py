"""Streams drawn as they are served, many at once: the serving cache, the serving sampler.

flow → **rollout** → distillation and evaluation. Keys and values lie in the `Window` and `Context`
that sessions use, so what a student meets in training is what it will meet in service. The one pass
that learns reads the same memory, handed on by concatenation, since gradients cannot flow through
memory that is overwritten.

Legend: B rows, C latent channels, F latent frames of a chunk, h and w rows and columns of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from services.score.attention import KeysValues
from services.score.cache import Context, Handed, Tape, Window, WindowLayer
from services.score.config import ScheduleConfig
from services.score.denoise import clean_from, levels, noised, sample
from services.score.model import Times
from services.score.passes import Scene
from training.flow import Conditions, Flow


class Rollout:
    """B streams of `flow`, chunk after chunk."""

    def __init__(self, flow: Flow, scene: Scene, *, schedule: ScheduleConfig | None = None) -> None:
        config = flow.config
        self._flow, self._scene = flow, scene
        self._config = config if schedule is None else replace(config, schedule=schedule)
        rows, device = len(scene.anchor), scene.anchor.device
        with torch.no_grad():
            layers = [Handed() for _ in range(config.layers)]
            flow.passes.anchor(scene, self._times(0.0), layers)
            tapes = [Tape.of(layers, row) for row in range(rows)]
        dtype = tapes[0].k.dtype
        self._window = Window(config, rows=rows, heads=config.heads, device=device, dtype=dtype)
        self._contexts = [Context(config, self._window) for _ in range(rows)]
        for row, tape in enumerate(tapes):
            self._window.put_anchor(row, tape)

    @torch.no_grad()
    def draw(self, noises: Sequence[Tensor], audio: Sequence[KeysValues]) -> Tensor:
        """The next chunk [B, C, F, h, w], from one noise per step of the schedule."""
        memory = self._memory()

        def predict(x: Tensor, step: int) -> Tensor:
            return self._predict(x, levels(self._config.schedule)[step], audio, memory)

        return sample(self._config, predict, noises, self._scene.anchor)

    def learn(self, noises: Sequence[Tensor], audio: Sequence[KeysValues], *, last: int) -> Tensor:
        """The chunk after step `last` of the schedule, whose pass alone carries a gradient."""
        steps = levels(self._config.schedule)
        x = noises[0]
        for step in range(last):
            with torch.no_grad():
                said = self._predict(x, steps[step], audio, self._memory())
                clean = clean_from(self._config, said, x, steps[step], self._scene.anchor)
                x = noised(clean, noises[step + 1], steps[step + 1])
        said = self._predict(x, steps[last], audio, self._handed())
        return clean_from(self._config, said, x, steps[last], self._scene.anchor)

    @torch.no_grad()
    def remember(self, clean: Tensor, audio: Sequence[KeysValues]) -> None:
        """Take a finished chunk [B, C, F, h, w] into the context."""
        rows = len(clean)
        times = self._times(self._config.context.level)
        parts = self._window.parts(rows, 0)
        self._flow.passes.context(clean, self._scene, times, audio, parts)
        for row, context in enumerate(self._contexts):
            context.remember(self._window, row)

    def _predict(
        self,
        x: Tensor,
        level: float,
        audio: Sequence[KeysValues],
        memory: Sequence[WindowLayer] | Sequence[Handed],
    ) -> Tensor:
        return self._flow.passes.denoise(x, self._scene, self._times(level), audio, memory)

    def _memory(self) -> list[WindowLayer]:
        """What a chunk being denoised may see, as serving lays it out."""
        moves = self._flow.passes.places.moves
        for row, context in enumerate(self._contexts):
            self._window.put_context(row, context.newest_first(), moves)
        return self._window.parts(self._window.rows, self._contexts[0].filled)

    def _handed(self) -> list[Handed]:
        """The same, handed on."""
        anchor, chunk = self._config.frame_tokens, self._config.chunk_tokens
        return [
            Handed(
                KeysValues(part.k[:, :anchor].clone(), part.v[:, :anchor].clone()),
                KeysValues(
                    part.k[:, anchor + chunk : part.seen].clone(),
                    part.v[:, anchor + chunk : part.seen].clone(),
                ),
            )
            for part in self._memory()
        ]

    def _times(self, level: float) -> Times:
        device = self._scene.anchor.device
        return self._flow.dit.embed_time(torch.full((1,), level, device=device))


def streamed(
    flow: Flow,
    given: Conditions,
    chunks: int,
    generator: torch.Generator,
    *,
    schedule: ScheduleConfig | None = None,
    first: int | None = None,
) -> Tensor:
    """Streams of `chunks` chunks, or the `first` of them, on their own contexts.

    Returns:
        [B, K, C, F, h, w].
    """
    rollout = Rollout(flow, given.scene, schedule=schedule)
    drawn = []
    for chunk in range(chunks if first is None else first):
        audio = speech_of(given, chunk, chunks)
        clean = rollout.draw(noises(flow, given, generator, schedule), audio)
        rollout.remember(clean, audio)
        drawn.append(clean)
    return torch.stack(drawn, 1)


def noises(
    flow: Flow,
    given: Conditions,
    generator: torch.Generator,
    schedule: ScheduleConfig | None = None,
) -> list[Tensor]:
    """Noise for every step of a chunk."""
    config, anchor = flow.config, given.scene.anchor
    rows, channels, _, height, width = anchor.shape
    shape = (rows, channels, config.stream.latents_per_chunk, height, width)
    return [
        torch.randn(shape, generator=generator, device=anchor.device)
        for _ in (schedule or config.schedule).levels
    ]


def speech_of(given: Conditions, chunk: int, chunks: int) -> list[KeysValues]:
    """Speech of one chunk of every row, from that of all chunks [B * K, ...]."""

    def pick(x: Tensor) -> Tensor:
        return x.view(-1, chunks, *x.shape[1:])[:, chunk]

    return [KeysValues(pick(kv.k), pick(kv.v)) for kv in given.audio]
