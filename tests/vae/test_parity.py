"""The same weights give the same pictures as in diffusers' independent implementation."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from services.vae.checkpoint import build
from services.vae.diffusers_layout import name_pairs, rename
from services.vae.model import Vae
from services.vae.state import State
from tests.vae.conftest import MEAN, STD, wan_like


@pytest.fixture(scope="module")
def theirs() -> AutoencoderKLWan:
    torch.manual_seed(0)
    model = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 4, 4], latents_mean=list(MEAN), latents_std=list(STD)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.7, 1.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ours(theirs: AutoencoderKLWan) -> Vae:
    config = wan_like()
    return build(config, rename(config, theirs.state_dict(), "diffusers"), "diffusers")


def test_names_cover_each_other(theirs: AutoencoderKLWan) -> None:
    names = dict(name_pairs(wan_like()))
    assert names.keys() == theirs.state_dict().keys()
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_encode(theirs: AutoencoderKLWan, ours: Vae, frames: int) -> None:
    video = torch.rand(2, 3, frames, 32, 48) * 2 - 1
    expected = theirs.encode(video).latent_dist.mode()
    mean, _, _ = ours.posterior(video, State())
    torch.testing.assert_close(mean, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("latents", [1, 2, 5])
def test_decode(theirs: AutoencoderKLWan, ours: Vae, latents: int) -> None:
    z = torch.randn(2, 4, latents, 4, 6)
    raw = z * ours.std + ours.mean
    expected = theirs.decode(raw).sample
    frames, _ = ours.decode(z, State())
    assert frames.shape == (2, 3, 1 + 4 * (latents - 1), 32, 48)
    torch.testing.assert_close(frames.clamp(-1, 1), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.01  # a flat picture would agree with anything
