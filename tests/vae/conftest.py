"""Small VAEs with random weights: every layout that the code has, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from services.vae.config import FoldConfig, TowerConfig, VaeConfig, wan21
from services.vae.model import Vae

MEAN = (0.1, -0.2, 0.3, 0.0)
STD = (1.5, 0.7, 2.0, 1.0)


def wan_like() -> VaeConfig:
    """Wan2.1 with narrow stages."""
    full = wan21()
    return VaeConfig(
        encoder=narrow(full.encoder, (4, 8, 16, 16)),
        decoder=narrow(full.decoder, (16, 16, 8, 4)),
        latent_mean=MEAN,
        latent_std=STD,
    )


def narrow(tower: TowerConfig, widths: tuple[int, ...]) -> TowerConfig:
    return TowerConfig(
        widths=widths,
        blocks=tower.blocks,
        taps=tower.taps,
        temporal=tower.temporal,
        middle_taps=tower.middle_taps,
        attention=tower.attention,
    )


def folded() -> VaeConfig:
    """What a small model uses: pixels folded, group norm, one block, short memory."""
    return VaeConfig(
        encoder=TowerConfig(
            widths=(8, 12, 16),
            blocks=1,
            taps=(1, 3, 3),
            temporal=(True, True),
            middle_taps=1,
            attention=False,
        ),
        decoder=TowerConfig(
            widths=(16, 12, 8),
            blocks=1,
            taps=(1, 3, 3),
            temporal=(True, True),
            middle_taps=1,
            attention=False,
        ),
        latent_mean=MEAN,
        latent_std=STD,
        patch=2,
        norm_groups=2,
    )


def frame_by_frame() -> VaeConfig:
    """What the shipped model uses: towers draw single frames, a latent folds four of them."""
    plain = folded()
    return replace(
        plain,
        encoder=replace(plain.encoder, taps=(1, 1, 1), temporal=(False, False)),
        decoder=replace(plain.decoder, taps=(3, 1, 1), temporal=(False, False)),
        norm_groups=0,
        fold=FoldConfig(frames=4, channels=3),
    )


CONFIGS: dict[str, Callable[[], VaeConfig]] = {
    "wan": wan_like,
    "folded": folded,
    "frame_by_frame": frame_by_frame,
}


def random_vae(config: VaeConfig, seed: int = 0) -> Vae:
    """Weights that keep activations at a size where differences would show."""
    torch.manual_seed(seed)
    vae = Vae(config)
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.7, 1.3)
    return vae.eval().requires_grad_(False)


@pytest.fixture(params=sorted(CONFIGS))
def vae(request: pytest.FixtureRequest) -> Vae:
    return random_vae(CONFIGS[request.param]())


@pytest.fixture
def wan() -> Vae:
    return random_vae(wan_like())
