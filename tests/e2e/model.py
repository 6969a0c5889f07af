"""A model folder as the fleet wants it: random weights, 64 pixels, two characters.

Its pictures show nothing, but they depend on speech, seed and character as a trained model's do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from services.score.checkpoint.loading import save as save_score
from services.score.checkpoint.loading import save_front_end
from services.score.config import DitConfig, LatentConfig
from services.score.frontend.config import MelFrontEnd
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.model import Dit
from services.score.presets import preset
from services.vae.checkpoint import save as save_vae
from services.vae.config import TowerConfig, VaeConfig
from services.vae.model import Vae

CHARACTERS = ("ada", "ben")

_SIDE = 64


def write_model(folder: Path) -> Path:
    """Score, VAE and characters; returns `folder`."""
    torch.manual_seed(7)
    vae_config = _vae()
    vae = Vae(vae_config).eval().requires_grad_(False)
    save_vae(vae, folder / "vae")
    config = _dit(vae_config)
    dit = Dit(config).eval()
    with torch.no_grad():
        for parameter in dit.parameters():  # what training starts at zero would hide the speech
            parameter.add_(torch.randn_like(parameter) * 0.02)
    save_score(folder / "score", config, dit.state_dict().items())
    assert config.audio is not None
    assert isinstance(config.audio.front_end, MelFrontEnd)
    save_front_end(folder / "score", SpeechEncoder(config.audio.front_end))
    (folder / "avatars").mkdir()
    for index, name in enumerate(CHARACTERS):
        Image.fromarray(_picture(index)).save(folder / "avatars" / f"{name}.png")
    return folder


def _vae() -> VaeConfig:
    def tower(widths: tuple[int, ...]) -> TowerConfig:
        return TowerConfig(
            widths=widths,
            blocks=1,
            taps=(1, 1, 1),
            temporal=(True, True),
            middle_taps=1,
            attention=False,
        )

    return VaeConfig(
        encoder=tower((8, 8, 8)),
        decoder=tower((8, 8, 8)),
        latent_mean=(0.0,) * 8,
        latent_std=(1.0,) * 8,
        patch=4,
        norm_groups=2,
    )


def _dit(vae: VaeConfig) -> DitConfig:
    small = preset("tiny")
    stride = (vae.frames_per_latent, vae.spatial_stride, vae.spatial_stride)
    return replace(
        small,
        dim=32,
        ffn_dim=64,
        heads=2,
        layers=2,
        latent=LatentConfig(channels=vae.latent_channels, stride=stride),
        stream=replace(small.stream, width=_SIDE, height=_SIDE),
    )


def _picture(index: int) -> NDArray[np.uint8]:
    """A plain face: enough to tell one from the other."""
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE]
    inside = (rows - 32) ** 2 + (columns - 32) ** 2 < 24**2
    picture = np.full((_SIDE, _SIDE, 3), (40, 60 + 90 * index, 120), np.uint8)
    picture[inside] = (230, 190 - 60 * index, 150)
    return picture
