"""Everything that depends on the machine, decided once, from outside the model.

Last station before serving: checkpoint → **machine** → engine. `runner.place` decides how the model
runs; here is where it runs and how much memory its sessions may hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from services.vae import checkpoint
from services.vae.admission import Limits
from services.vae.engine import Engine
from services.vae.runner import place

# Of what is free when the model is there. The rest is for recorded shapes and workspaces.
_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Made:
    """What a checkpoint becomes on this machine."""

    engine: Engine
    checkpoint: str  # names weights and configuration


def load(
    path: Path,
    device: torch.device,
    *,
    dtype: torch.dtype | None,
    memory_bytes: int | None,
    load: float,
    batch: int,
) -> Made:
    """An engine over the VAE at `path`.

    Args:
        dtype: of the weights; the fastest here if not given.
        memory_bytes: that sessions may hold together; a share of what is free if not given.
        load, batch: as `Limits` says.

    Raises:
        BadCheckpoint: it does not fit.
        ValueError: limits without sense; names the field.
    """
    vae = checkpoint.load(path)
    name = checkpoint.identity(vae)
    runner = place(vae, device, dtype=dtype)
    if memory_bytes is None:
        used, total = memory(device)
        memory_bytes = max(1, int(_SHARE * (total - used)))
    return Made(Engine(runner, Limits(memory_bytes=memory_bytes, load=load, batch=batch)), name)


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes used and bytes there in all, on `device`; a CPU has the machine's."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kibibytes = {name: int(count) for name, count, *_ in lines}
    total = kibibytes["MemTotal:"]
    return 1024 * (total - kibibytes["MemAvailable:"]), 1024 * total
