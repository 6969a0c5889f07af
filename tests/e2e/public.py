"""A model folder with public weights in it, small: Wan2.2-S2V, its encoders, LiveAvatar's adapters.

The VAE has the latent space of Wan2.1, and little else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from services.vae.checkpoint import save
from services.vae.config import TowerConfig, VaeConfig
from services.vae.model import Vae
from tests.score import encoders, s2v
from tests.score.frontends import network


def write_public(folder: Path) -> dict[str, Any]:
    """Returns the settings of score that such a download needs."""
    torch.manual_seed(7)
    tower = TowerConfig(
        widths=(8, 8, 8),
        blocks=1,
        taps=(1, 1, 1),
        temporal=(True, True),
        middle_taps=1,
        attention=False,
    )
    vae = VaeConfig(
        encoder=tower,
        decoder=tower,
        latent_mean=(0.0,) * 16,
        latent_std=(1.0,) * 16,
        patch=2,
        norm_groups=2,
    )
    save(Vae(vae).eval().requires_grad_(False), folder / "vae")
    s2v.write_wan22(encoders.write(folder / "score"), s2v.tensors())
    adapters, _ = s2v.write_live_avatar(folder / "liveavatar.safetensors")
    network(stable=True).save_pretrained(folder / "wav2vec2")
    return {
        "loras": [{"path": str(adapters)}],
        "wav2vec": str(folder / "wav2vec2"),
        "size": "64x64",
        "encoders": {"dtype": "float32"},
        "dtype": "float32",
    }
