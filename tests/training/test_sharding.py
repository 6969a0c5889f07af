"""A step over two processes is the step of one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import spawn

from services.score.model import Dit
from tests.training import small
from training import losses
from training.flow import Believer, initialised
from training.learner import Learner, Recipe
from training.rows import picked
from training.sharding import gathered, sharded

_ROWS, _STEPS = 4, 3


def believer() -> Believer:
    torch.manual_seed(0)
    return Believer(initialised(Dit(small.dit())), "causal")


def train(model: Believer, rows: slice) -> list[float]:
    """A few steps from `rows` of each batch; the norms of the gradients."""
    learner = Learner(model, Recipe(rate=1e-3, warm_up=1))
    norms = []
    for step in range(_STEPS):
        clips = small.clips(_ROWS, 2, seed=step)
        noisy = clips.latents + small.normal(*clips.latents.shape, seed=step)
        clips, noisy = picked(clips, rows), noisy[rows]
        level = torch.full((len(noisy),), 0.5)
        believed = model(noisy, level, clips, context=clips.latents)
        loss = losses.flow(believed, clips.latents, level)
        norms.append(float(learner.descend(loss, 0.0)))
    return norms


def work(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        model = sharded(believer(), init_device_mesh("cpu", (2,)))
        norms = train(model, slice(2 * rank, 2 * rank + 2))
        whole = gathered(model)
        if rank == 0:
            torch.save({"norms": norms, "weights": whole}, out)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.timeout(120)
def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    spawn(work, args=(free_port(), str(tmp_path / "out.pt")), nprocs=2)  # type: ignore[no-untyped-call]
    made = torch.load(tmp_path / "out.pt")
    alone = believer()
    norms = train(alone, slice(0, _ROWS))
    assert made["norms"] == pytest.approx(norms, rel=1e-4)
    weights: dict[str, Tensor] = alone.dit.state_dict()
    assert made["weights"].keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(made["weights"][name], value, rtol=0, atol=5e-5)
