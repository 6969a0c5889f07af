"""Whether several devices decode one picture faster than one.

    torchrun --nproc-per-node N -m benchmarks.vae_split

Milliseconds per chunk of 3 latents on one rank alone, and with the picture's rows split over all
ranks; NCCL where there are GPUs, gloo otherwise. Weights are random. Rank 0 prints.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist

from benchmarks.vae import wan_small
from services.vae.config import wan21
from services.vae.model import Vae
from services.vae.runner import Runner, place
from services.vae.split import split_rows
from services.vae.state import State

LATENTS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=0, help="pixels (default: 512, CPU 128)")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo")
    group = dist.group.WORLD
    assert group is not None
    config, side = (wan21(), 512) if gpu else (wan_small(), 128)
    runner = random_runner(Vae(config), device)
    rows, columns = config.latent_size(arguments.side or side, arguments.side or side)
    alone = chunk_seconds(runner, rows, columns, arguments.runs)
    dist.barrier()
    split_rows(runner.vae, group)
    together = chunk_seconds(runner, rows, columns, arguments.runs)
    if dist.get_rank() == 0:
        ranks = dist.get_world_size()
        print(f"alone {alone * 1000:.1f} ms, {ranks} ranks {together * 1000:.1f} ms per chunk")
    dist.destroy_process_group()


def random_runner(vae: Vae, device: torch.device) -> Runner:
    """The same weights on every rank."""
    torch.manual_seed(0)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return place(vae.eval().requires_grad_(False), device, dtype=torch.bfloat16)


def chunk_seconds(runner: Runner, rows: int, columns: int, runs: int) -> float:
    """Eager, in the runner's format; a rank that is faster waits for the others."""
    channels = runner.config.latent_channels
    with runner.active():
        z = runner.take(torch.zeros(1, channels, 1 + LATENTS, rows, columns))
        _, state = runner.vae.decode(z[:, :, :1], State())

        seconds = []
        for _ in range(runs + 2):  # two to warm up
            began = time.perf_counter()
            frames, _ = runner.vae.decode(z[:, :, 1:], state)
            frames[..., :1, :1].cpu()  # waits for the device
            seconds.append(time.perf_counter() - began)
        return min(seconds[2:])


if __name__ == "__main__":
    main()
