"""What the model in the repository looks like: its VAE and its transformer.

Beside the training scripts. A run of another size changes these two functions and nothing else: the
14B model of the paper is `services.score.presets.preset("tm-18b")` over the Wan2.1 VAE.
"""

from __future__ import annotations

from dataclasses import replace

from services.score.config import DitConfig, LatentConfig, PositionsConfig
from services.score.presets import preset
from services.vae.config import TowerConfig, VaeConfig
from training.footage import Geometry

SIDE = 192  # pixels of a picture's side


def clips_of_faces() -> Geometry:
    """What is learned from pictures alone: short clips, the VAE's longest and no more."""
    return Geometry(frames=13, size=SIDE)


def shipped_vae() -> VaeConfig:
    """The small model's VAE: 8 x 8 pixels and 4 frames per latent, 32 channels.

    Of the same budget of numbers per picture, few channels on a fine grid are learned much faster
    than many on a coarse one. Convolutions see the past at the lowest resolution alone.
    """
    return VaeConfig(
        encoder=TowerConfig(
            widths=(48, 96, 128),
            blocks=1,
            taps=(1, 1, 1),
            temporal=(True, True),
            middle_taps=1,
            attention=False,
        ),
        decoder=TowerConfig(
            widths=(128, 96, 48),
            blocks=1,
            taps=(3, 1, 1),
            temporal=(True, True),
            middle_taps=1,
            attention=False,
        ),
        latent_mean=(0.0,) * 32,
        latent_std=(1.0,) * 32,
        patch=2,
    )


def shipped_dit(
    vae: VaeConfig, *, latents_per_chunk: int = 3, anchor_channels: bool = True
) -> DitConfig:
    """The small transformer over `vae`: 36 tokens of 4 x 4 latents per latent frame.

    Four times the tokens cost five times as much per step of training.

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
        patch=(1, 4, 4),
        latent=LatentConfig(channels=vae.latent_channels, stride=stride),
        audio=replace(small.audio, after=2),
        stream=replace(small.stream, width=SIDE, height=SIDE, latents_per_chunk=latents_per_chunk),
        positions=PositionsConfig(own=1 + latents_per_chunk),
        anchor=small.anchor if anchor_channels else None,
        prediction="clean" if anchor_channels else "velocity",
    )
