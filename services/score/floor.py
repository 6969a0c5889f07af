"""How much arithmetic a chunk needs, whatever the machine: the floor that speed is judged by.

Beside `machine.py`; benchmarks and planning read it. Counts multiply-adds of matrix products as two
operations; norms, rotations and softmax are left out, so nothing can be faster than this.

Legend: L tokens of a chunk, M tokens it sees, D width, F width of the perceptron.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.score.config import (
    DitConfig,
    FantasyTalkingAudio,
    MultiTalkAudio,
    PaperAudio,
    S2vAudio,
)


@dataclass(frozen=True, slots=True)
class Floor:
    """Floating-point operations of one pass over a chunk, by part."""

    projections: float  # q, k, v, o of self-attention
    attention: float
    cross: float  # q, o and attention of the cross-attention
    perceptron: float
    audio: float

    @property
    def total(self) -> float:
        return self.projections + self.attention + self.cross + self.perceptron + self.audio


def pass_floor(config: DitConfig, *, chunks: int) -> Floor:
    """Of one pass that sees the anchor, itself and `chunks` finished chunks."""
    length, dim, layers = config.chunk_tokens, config.dim, config.layers
    seen = config.anchor_tokens + (1 + chunks) * length
    described = (config.text.tokens if config.text else 0) + (
        config.clip.tokens if config.clip else 0
    )
    return Floor(
        projections=layers * 8.0 * length * dim**2,
        attention=layers * 4.0 * length * seen * dim,
        cross=layers * 4.0 * length * dim * (dim + described),
        perceptron=layers * 4.0 * length * dim * config.ffn_dim,
        audio=_audio(config),
    )


def chunk_floor(config: DitConfig) -> float:
    """Of all denoising steps of a chunk in mid-stream and of its context pass."""
    context = config.context
    steps = len(config.schedule.levels) * pass_floor(config, chunks=context.chunks).total
    if context.policy in ("kept", "levels"):
        return steps
    return steps + pass_floor(config, chunks=0 if context.policy == "own" else context.chunks).total


def _audio(config: DitConfig) -> float:
    """Attention to one speaker; MultiTalk and Wan2.2-S2V also have their own query and output."""
    if config.audio is None:
        return 0.0
    length, dim, adapter = config.chunk_tokens, config.dim, config.audio.adapter
    match adapter:
        case MultiTalkAudio():
            return config.layers * 4.0 * length * dim * (adapter.tokens + dim)
        case S2vAudio():
            return len(adapter.layers) * 4.0 * length * dim * (adapter.tokens + 1 + dim)
        case PaperAudio() | FantasyTalkingAudio():
            return config.layers * 4.0 * length * dim * config.audio.window
