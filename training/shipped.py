"""What the model in the repository looks like: its VAE and its transformer.

Beside the training scripts. A run of another size changes these two functions and nothing else: the
14B model of the paper is `services.score.presets.preset("tm-18b")` over the Wan2.1 VAE.
"""

from __future__ import annotations

from dataclasses import replace

from services.score.config import DitConfig, LatentConfig, PositionsConfig
from services.score.presets import preset
from services.vae.config import FoldConfig, TowerConfig, VaeConfig
from training.footage import Geometry

SIDE = 192  # pixels of a picture's side


def pictures_of_faces() -> Geometry:
    """Clips of which single pictures are learned: many characters rather than many frames."""
    return Geometry(frames=3, size=SIDE)


def clips_of_faces() -> Geometry:
    """What is learned from pictures alone: short clips, the VAE's longest and no more."""
    return Geometry(frames=13, size=SIDE)


def picture_vae() -> VaeConfig:
    """What the small model's VAE is before it folds time: it draws frame by frame."""
    return VaeConfig(
        encoder=_tower((48, 96, 128)),
        decoder=_tower((128, 96, 32)),
        latent_mean=(0.0,) * 16,
        latent_std=(1.0,) * 16,
        patch=2,
    )


def shipped_vae() -> VaeConfig:
    """The small model's VAE: 8 x 8 pixels and 4 frames per latent, 32 channels.

    Frames are drawn one by one and share latents by a linear fold, which learns in minutes what
    towers that halve time do not: two numbers in four are kept. At the lowest resolution the
    decoder sees the past, so that a latent goes on smoothly where the one before it ended.
    """
    pictures = picture_vae()
    return replace(
        pictures,
        decoder=replace(pictures.decoder, taps=(3, 1, 1)),
        latent_mean=(0.0,) * 32,
        latent_std=(1.0,) * 32,
        fold=FoldConfig(frames=4, channels=pictures.latent_channels),
    )


def _tower(widths: tuple[int, ...]) -> TowerConfig:
    return TowerConfig(
        widths=widths,
        blocks=1,
        taps=(1, 1, 1),
        temporal=(False, False),
        middle_taps=1,
        attention=False,
    )


def shipped_dit(
    vae: VaeConfig, *, latents_per_chunk: int = 3, anchor_channels: bool = True
) -> DitConfig:
    """The small transformer over `vae`: 64 tokens of 3 x 3 latents per latent frame.

    A token then has about as many numbers as the transformer is wide. With fewer, larger tokens
    neither the first nor the last layer can pass on what latents hold.

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
        patch=(1, 3, 3),
        latent=LatentConfig(channels=vae.latent_channels, stride=stride),
        audio=replace(small.audio, after=2),
        stream=replace(small.stream, width=SIDE, height=SIDE, latents_per_chunk=latents_per_chunk),
        positions=PositionsConfig(own=1 + latents_per_chunk),
        anchor=small.anchor if anchor_channels else None,
        prediction="clean" if anchor_channels else "velocity",
    )
