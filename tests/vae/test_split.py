"""Two ranks make the picture of one."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from services.vae.model import Vae
from services.vae.split import split_rows
from services.vae.state import State
from tests.vae.conftest import folded, frame_by_frame, random_vae, wan_like


def small_rms() -> Vae:
    return random_vae(replace(folded(), norm_groups=0))


def wan_vae() -> Vae:
    return random_vae(wan_like())


def frames_vae() -> Vae:
    return random_vae(frame_by_frame())


MADE = {"wan": wan_vae, "folded": small_rms, "frame_by_frame": frames_vae}


def stream(vae: Vae) -> tuple[Tensor, int]:
    """Frames of an anchor, a warmed tail and two chunks; and the bytes of the state."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 4, 9, 4, 6, generator=generator)
    _, state = vae.decode(z[:, :, :1], State())
    state = vae.warm(z[:, :, 1:4], state)
    first, state = vae.decode(z[:, :, 4:6], state)
    second, state = vae.decode(z[:, :, 6:], state)
    return torch.cat([first, second], 2), state.bytes


def run_rank(rank: int, ranks: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    group = dist.group.WORLD
    assert group is not None
    outputs = {}
    for name, make in MADE.items():
        vae = make()
        split_rows(vae, group)
        with torch.inference_mode():
            outputs[name] = stream(vae)
    torch.save(outputs, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_equal_one(tmp_path: Path) -> None:
    ranks = 2
    meeting = f"file://{tmp_path}/meeting"
    spawn = multiprocessing.get_context("spawn")
    started = [
        spawn.Process(target=run_rank, args=(rank, ranks, meeting, str(tmp_path)))
        for rank in range(ranks)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    for name, make in MADE.items():
        expected, whole = stream(make())
        for rank in range(ranks):
            frames, own = torch.load(tmp_path / f"{rank}.pt")[name]
            torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)
            # Half, and the neighbours' rows: with two rows of a latent each, as much again.
            assert own <= whole if name == "frame_by_frame" else own < 0.8 * whole


def test_group_norm_cannot_be_split(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        assert dist.group.WORLD is not None
        with pytest.raises(ValueError, match="norm_groups"):
            split_rows(random_vae(folded()), dist.group.WORLD)
    finally:
        dist.destroy_process_group()
