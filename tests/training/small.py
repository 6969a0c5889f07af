"""Models small enough to be trained inside a test."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from services.score.config import (
    AnchorConfig,
    AudioConfig,
    DitConfig,
    LatentConfig,
    PaperAudio,
    StreamConfig,
)
from services.score.frontend.config import MelFrontEnd
from services.score.frontend.speech_encoder import SpeechEncoder
from services.vae.config import TowerConfig, VaeConfig
from services.vae.model import Vae
from training.latents import LatentClips
from training.rows import Pool
from training.supply import Supply

FRONT_END = MelFrontEnd(width=4, controls=("open", "press"))


def dit(**changes: object) -> DitConfig:
    """4 x 4 latents of 4 channels, 2 x 2 tokens per frame."""
    made = DitConfig(
        dim=24,
        ffn_dim=32,
        heads=2,
        layers=2,
        freq_dim=16,
        prediction="clean",
        latent=LatentConfig(channels=4, stride=(4, 8, 8)),
        text=None,
        anchor=AnchorConfig(mask_channels=0, fill="anchor"),
        audio=AudioConfig(
            adapter=PaperAudio(width=8, depth=1, heads=2),
            front_end=FRONT_END,
            embedding_dim=FRONT_END.outputs,
            per_latent=4,
            before=4,
            after=2,
        ),
        stream=StreamConfig(fps=25, width=32, height=32),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clips(rows: int, chunks: int, *, seed: int = 0) -> LatentClips:
    """Random clips that the small model can learn."""
    made = dit()
    assert made.audio is not None
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    channels, frames = made.latent.channels, made.stream.latents_per_chunk
    rows_each, columns = made.latent_size
    window = made.audio.before + frames * made.audio.per_latent + made.audio.after
    mouth = torch.ones(rows, chunks, frames, rows_each, columns)
    mouth[..., 2:, 1:3] = 2
    return LatentClips(
        latents=draw(rows, chunks, channels, frames, rows_each, columns),
        anchor=draw(rows, channels, 1, rows_each, columns),
        embeddings=draw(rows, chunks, window, made.audio.embedding_dim),
        heard=torch.ones(rows, chunks, window, dtype=torch.bool),
        controls=torch.rand(rows, chunks * frames * 4, 6, generator=generator),
        mouth=mouth,
        faces=torch.ones(rows, made.frame_tokens),
    )


def mixed(clips: LatentClips, **changes: Tensor) -> LatentClips:
    """`clips` with some of its tensors exchanged."""
    return replace(clips, **changes)


def vae(channels: int = 4) -> VaeConfig:
    """Every kind of layer that the shipped one has, narrow."""
    return VaeConfig(
        encoder=TowerConfig(
            widths=(8, 8, 16),
            blocks=1,
            taps=(1, 3, 3),
            temporal=(True, True),
            middle_taps=1,
            attention=False,
        ),
        decoder=TowerConfig(
            widths=(16, 16, 8),
            blocks=1,
            taps=(3, 3, 1),
            temporal=(True, True),
            middle_taps=1,
            attention=False,
        ),
        latent_mean=(0.0,) * channels,
        latent_std=(1.0,) * channels,
        patch=2,
        norm_groups=1,
    )


def supply() -> Supply:
    """Random clips, and random networks that draw and hear them."""
    torch.manual_seed(0)
    return Supply(
        pool=Pool(
            lambda numbers: clips(len(numbers), 2, seed=numbers[0]), size=2, block=1, period=3
        ),
        held_out=clips(1, 2, seed=99),
        vae=Vae(vae()).eval().requires_grad_(False),
        front_end=SpeechEncoder(FRONT_END),
    )
