"""The VAE's training: what it starts from, what it learns from, what it leaves behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor

from services.score.model import Dit
from services.vae import checkpoint
from services.vae.model import Vae
from services.vae.state import State
from tests.training import small
from training.babble import Babble
from training.beginning import begun
from training.data.faces.split import Split
from training.footage import Geometry, Studio
from training.latent_space import Moments, folded, turned
from training.learner import Recipe
from training.run import Budget, run
from training.shipped import picture_vae, shipped_dit, shipped_vae
from training.vae import Phase, VaeTask, VaeTraining, cropped, signed

CPU = torch.device("cpu")
GEOMETRY = Geometry(frames=5, size=64)
PHASES = (Phase(0.3, crop=32, frames=1, rows=3), Phase(1.0, crop=32, frames=5, rows=2))
TRAINING = VaeTraining(phases=PHASES, human=0.3, pool=2, block=1, period=50, held_out=1)


def random_vae() -> Vae:
    torch.manual_seed(0)
    return Vae(small.vae(6)).eval().requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_a_model_begins_by_drawing_each_frame_by_itself() -> None:
    vae = begun(random_vae())
    still = noise(1, 3, 1, 32, 32).expand(-1, -1, 9, -1, -1)
    latents, _ = vae.encode(still, State())
    torch.testing.assert_close(latents, latents[:, :, :1].expand_as(latents), rtol=0, atol=1e-5)
    frames, _ = vae.decode(latents, State())
    torch.testing.assert_close(frames, frames[:, :, :1].expand_as(frames), rtol=0, atol=1e-5)


def test_a_model_begins_by_drawing_blurred_pictures_in_colour() -> None:
    torch.manual_seed(0)
    vae = begun(Vae(picture_vae())).requires_grad_(False)
    colour = torch.rand(4, 3, 1, 1, 1, generator=torch.Generator().manual_seed(2)) * 1.6 - 0.8
    plain = colour.expand(-1, -1, 1, 64, 64)
    latents, _ = vae.encode(plain, State())
    frames, _ = vae.decode(latents, State())
    inner = frames[..., 24:40, 24:40].mean((2, 3, 4))
    assert float((inner - colour[:, :, 0, 0, 0]).abs().max()) < 0.35
    assert float(torch.corrcoef(torch.stack([inner.flatten(), colour.flatten()]))[0, 1]) > 0.95


def test_a_turned_model_draws_the_same_pictures_from_tidy_latents() -> None:
    vae = random_vae()
    video = noise(2, 3, 9, 32, 32)
    mean, _, _ = vae.posterior(video, State())
    before, _ = vae.decode(vae.normalise(mean), State())
    tidy = turned(vae, Moments.of([mean[:1].movedim(1, -1), mean[1:].movedim(1, -1)]))
    latents, _ = tidy.encode(video, State())
    after, _ = tidy.decode(latents, State())
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    flat = latents.movedim(1, -1).flatten(0, -2).double()
    covariance = flat.T @ flat / len(flat)
    torch.testing.assert_close(flat.mean(0), torch.zeros(6).double(), atol=1e-3, rtol=0)
    variances = covariance.diagonal()
    assert float(variances.mean()) == pytest.approx(1, abs=1e-3)
    assert bool((variances.diff() <= 1e-6).all()), "the widest axis comes first"
    torch.testing.assert_close(covariance, variances.diag(), atol=1e-3, rtol=0)


def test_a_fold_begins_by_drawing_what_pictures_drew() -> None:
    """With as many numbers per latent as its frames have, nothing is lost."""
    torch.manual_seed(0)
    pictures = begun(Vae(picture_vae())).eval().requires_grad_(False)
    shipped = shipped_vae()
    config = replace(shipped, latent_mean=(0.0,) * 64, latent_std=(1.0,) * 64)
    clips = noise(2, 3, 8, 64, 64)
    codes, _, _ = pictures.posterior(clips, State())
    rows = rearrange(codes, "b c (t f) h w -> b t h w (f c)", f=4)
    vae = folded(pictures, config, Moments.of([rows]))
    mean, _, _ = vae.posterior(torch.cat([clips[:, :, :1], clips], 2), State())
    frames, _ = vae.decode(vae.normalise(mean), State())
    expected, _ = pictures.decode(pictures.normalise(codes), State())
    assert mean.shape == (2, 64, 3, 8, 8)
    torch.testing.assert_close(frames[:, :, 1:], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(frames[:, :, 0], expected[:, :, 0], rtol=1e-3, atol=1e-3)


def test_crops_show_the_mouth_in_half_of_the_cases() -> None:
    footage = Studio(Babble(GEOMETRY), GEOMETRY, Split.TRAIN, CPU).make([3])
    generator = torch.Generator().manual_seed(0)
    frames, weights = [], []
    for _ in range(40):
        crops = cropped(footage, PHASES[0], 6.0, generator)
        assert crops.frames.shape == (1, 3, 1, 32, 32)
        assert float(crops.weight.mean()) == pytest.approx(1, abs=1e-5)
        frames.append(crops.frames)
        weights.append(float(crops.weight.amax() / crops.weight.amin()))
    assert sum(weight > 5 for weight in weights) >= 20
    assert not torch.equal(frames[0], frames[1])


def test_it_learns_resumes_and_leaves_what_serving_reads(tmp_path: Path) -> None:
    def task() -> VaeTask:
        recipe = Recipe(rate=3e-3, betas=(0.9, 0.95), warm_up=5)
        torch.manual_seed(0)
        vae = begun(Vae(small.vae(6)))
        return VaeTask(vae, TRAINING, recipe, geometry=GEOMETRY, device=CPU)

    first = task()
    before = first.sheet()[1]
    assert not run(first, tmp_path, Budget(1e9, steps=60, call_minutes=0))
    again = task()
    assert run(again, tmp_path, Budget(1e9, steps=60))
    assert again.learner.steps == 60
    picture, after = again.sheet()
    assert after["ssim"] > before["ssim"] + 0.1
    assert picture.shape == (3, 128, 64)
    vae = checkpoint.load(tmp_path / "export")
    frames = signed(torch.cat([again._judges.anchor[:, None], again._judges.frames[:, :4]], 1))
    latents, _ = vae.float().encode(frames, State())
    assert latents.shape == (1, 6, 2, 8, 8)
    assert float(latents.square().mean()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("latents", [1, 2, 6])
def test_ablations_are_models_too(latents: int) -> None:
    config = shipped_dit(shipped_vae(), latents_per_chunk=latents, anchor_channels=False)
    assert config.spec.frames_per_chunk == 4 * latents
    assert config.in_channels == config.latent.channels


def test_the_shipped_sizes() -> None:
    with torch.device("meta"):
        vae = Vae(shipped_vae())
        dit = Dit(shipped_dit(vae.config))
    assert (vae.config.spatial_stride, vae.config.frames_per_latent) == (8, 4)
    assert (dit.config.frame_tokens, dit.config.spec.frames_per_chunk) == (64, 12)
    # In 16 bits both fit beside avatars and speech into the 40 MB that a checkout carries.
    parameters = sum(p.numel() for model in (vae, dit) for p in model.parameters())
    assert 6e6 < parameters < 18e6
