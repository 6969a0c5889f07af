"""What the model in the repository looks like: its VAE and its transformer.

Beside the training scripts. A run of another size changes these two functions and nothing else: the
14B model of the paper is `services.score.presets.preset("tm-18b")` over the Wan2.1 VAE.
"""

from __future__ import annotations

from dataclasses import replace

from services.score.config import DitConfig, LatentConfig, PositionsConfig
from services.score.presets import preset
from services.vae.config import TowerConfig, VaeConfig


def shipped_vae() -> VaeConfig:
    """The small model's VAE: 16 x 16 pixels and 4 frames per latent, 48 channels.

    Time is halved where pictures are large, so that most of the work is done at a lower frame rate.
    """
    return VaeConfig(
        encoder=TowerConfig(
            widths=(32, 64, 128, 192),
            blocks=1,
            taps=(1, 3, 3, 3),
            temporal=(True, True, False),
            middle_taps=1,
            attention=False,
        ),
        decoder=TowerConfig(
            widths=(192, 128, 64, 32),
            blocks=1,
            taps=(3, 3, 3, 1),
            temporal=(False, True, True),
            middle_taps=1,
            attention=False,
        ),
        latent_mean=(0.0,) * 48,
        latent_std=(1.0,) * 48,
        patch=2,
        norm_groups=2,
    )


def shipped_dit(
    vae: VaeConfig, *, latents_per_chunk: int = 3, anchor_channels: bool = True
) -> DitConfig:
    """The small transformer over `vae`: 64 tokens per latent frame at 256 x 256 pixels.

    With the front end's own 80 ms, two embeddings after a chunk make 160 ms of look-ahead.

    Args:
        latents_per_chunk: another number is an ablation.
        anchor_channels: without them, an ablation, the reference picture is only attended to.
    """
    small = preset("tiny")
    assert small.audio is not None
    stride = (vae.frames_per_latent, vae.spatial_stride, vae.spatial_stride)
    return replace(
        small,
        layers=8,
        latent=LatentConfig(channels=vae.latent_channels, stride=stride),
        audio=replace(small.audio, after=2),
        stream=replace(small.stream, latents_per_chunk=latents_per_chunk),
        positions=PositionsConfig(own=1 + latents_per_chunk),
        anchor=small.anchor if anchor_channels else None,
        prediction="clean" if anchor_channels else "velocity",
    )
