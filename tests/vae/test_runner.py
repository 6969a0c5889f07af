"""Speed changes nothing but speed: format, layout and recording give the model's pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import services.vae.runner
from services.accelerator.replay import Rerun
from services.vae.config import wan21
from services.vae.model import Vae
from services.vae.runner import Runner, place
from services.vae.state import State, append
from tests.imports import imported
from tests.vae.conftest import CONFIGS, random_vae

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_placing_keeps_the_picture(name: str) -> None:
    z = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected, _ = random_vae(CONFIGS[name]()).decode(z, State())
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        runner = place(random_vae(CONFIGS[name]()), CPU, dtype=dtype)
        with runner.active():
            got, _ = runner.vae.decode(runner.take(z), State())
        assert got.dtype == dtype
        error = (got.float() - expected).pow(2).mean().sqrt() / expected.std()
        assert error < tolerance


def test_the_format_is_chosen_by_trial() -> None:
    runner = place(random_vae(CONFIGS["folded"]()), CPU)
    assert runner.dtype in (torch.float32, torch.bfloat16)
    assert {parameter.dtype for parameter in runner.vae.parameters()} == {runner.dtype}


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_windows_lie_in_memory_as_convolutions_read_them(frames: int) -> None:
    """A convolution that finds another layout copies its whole input every time."""
    for layout in (torch.channels_last_3d, torch.contiguous_format):
        past = torch.randn(2, 4, 2, 3, 3).contiguous(memory_format=layout)
        new = torch.randn(2, 4, frames, 3, 3).contiguous(memory_format=layout)
        window = append([past, new])
        assert window.is_contiguous(memory_format=torch.channels_last_3d)
        assert window.equal(torch.cat([past, new], 2))


def test_more_shapes_than_are_recorded_run_as_well() -> None:
    placed = place(random_vae(CONFIGS["folded"]()), CPU, dtype=torch.float32)
    recorded = Runner(placed.vae, CPU, capture=Rerun(), compiled=False)
    for latents in range(1, 7):
        z = torch.randn(1, 4, latents, 4, 4)
        with recorded.active():
            state = recorded.begin(torch.randn(1, 4, 1, 4, 4), z)
            frames, _ = recorded.decode(z, [state])
            expected, _ = placed.decode(z, [state])
            torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)


def test_full_size_sessions_hold_what_was_computed_for_them() -> None:
    """1.24 GB in bfloat16 at 512 x 512, by the published network's sizes."""
    with torch.device("meta"):
        vae = Vae(wan21()).to(torch.bfloat16)
    runner = Runner(vae, CPU, capture=None, compiled=False)
    assert round(runner.session_bytes(64, 64) / 1e9, 2) == 1.24


def test_gradients_reach_every_parameter(vae: Vae) -> None:
    """Training runs this very code."""
    vae.requires_grad_(True)
    side = 2 * vae.config.spatial_stride
    video = torch.rand(1, 3, 1 + vae.config.frames_per_latent, side, side) * 2 - 1
    mean, log_variance, _ = vae.posterior(video, State())
    frames, _ = vae.decode(vae.normalise(mean + log_variance), State())
    torch.autograd.backward((frames - video).pow(2).mean())
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_model_does_not_know_where_it_runs() -> None:
    folder = Path(services.vae.runner.__file__).parent
    for name in ("config", "layers", "state", "decoder", "encoder", "model"):
        text = (folder / f"{name}.py").read_text()
        for word in ("cuda", "rank", "world_size", "bfloat16"):
            assert word not in text, f"{name}.py says {word}"


# What serves the engine runs where a fleet runs, with all that it needs.
SERVING = {
    "__main__",
    "app",
    "driver",
    "replica",
    "servicer",
    "settings",
    "stream",
    "tally",
    "wire",
}


def test_gpu_machines_need_few_packages() -> None:
    """They have torch, safetensors, einops and numpy; only encoding wants more."""
    allowed = {"torch", "safetensors", "einops", "services", "talkingmachines", "__future__"}
    folder = Path(services.vae.runner.__file__).parent
    for file in sorted(folder.glob("*.py")):
        if file.stem in SERVING:
            continue
        extra = {"av", "numpy"} if file.name == "codecs.py" else set()
        for name in imported(file):
            root = name.split(".")[0]
            assert root in allowed | extra | sys.stdlib_module_names, f"{file.name}: {name}"


def test_a_step_compiles_as_one_graph() -> None:
    """GPUs run it so; a break in the graph would fail there only, at start."""
    runner = place(random_vae(CONFIGS["folded"]()), CPU, dtype=torch.float32)
    step = torch.compile(runner._decode, fullgraph=True, dynamic=False, backend="eager")
    with runner.active():
        state = runner.begin(torch.randn(1, 4, 1, 4, 4), torch.randn(1, 4, 0, 4, 4))
        z = torch.randn(1, 4, 3, 4, 4)
        for got, expected in zip(
            step(z, *state.slots), runner._decode(z, *state.slots), strict=True
        ):
            torch.testing.assert_close(got, expected)
