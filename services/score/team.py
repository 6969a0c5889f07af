"""The ranks of a replica: how one becomes part of it, and what all but the first do.

Under `replica.py`, whose process is rank 0, mostly the only one. Every other rank is a process of
its own, whoever started it: `serve_rank` is what it runs.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import structlog
import torch
import torch.distributed as dist

from services.score.checkpoint.lora import Lora
from services.score.checkpoint.opening import Checkpoint, open_checkpoint
from services.score.machine import make
from services.score.parallel import Ranks, follow
from services.score.settings import Settings
from services.score.worker import Worker

_log = structlog.stdlib.get_logger(__name__)

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
_MEETING_SECONDS = 120.0  # for all processes to start and find each other


@dataclass(frozen=True, slots=True)
class Meeting:
    """One rank's way to the others."""

    address: str  # host:port, on rank 0's machine
    rank: int
    size: int

    def join(self, device: torch.device, *, timeout: float) -> Ranks:
        """Meet the others; all must come.

        Args:
            timeout: seconds after which a rank that does not answer is taken for lost.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{self.address}",
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=_MEETING_SECONDS),
        )
        return Ranks.gather(timeout=timeout)


@dataclass(frozen=True, slots=True)
class Member:
    """One rank, with all that it needs to draw its part."""

    device: torch.device
    opened: Checkpoint
    worker: Worker
    checkpoint: str  # names weights and configuration
    ranks: Ranks | None  # when there are others


def enlist(settings: Settings, meeting: Meeting | None) -> Member:
    """Load this rank's part of the model, together with the others if there are any.

    Raises:
        BadCheckpoint: the model does not fit.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device, dtype = pick_device(settings), _DTYPES[settings.dtype]
    loras = [Lora(file.path, file.alpha) for file in settings.loras]
    opened = open_checkpoint(
        settings.model,
        audio=settings.audio,
        loras=loras,
        recipe=settings.recipe,
        size=settings.picture,
    )
    ranks = None if meeting is None else meeting.join(device, timeout=settings.hang_seconds)
    made = make(opened, device, rows=settings.rows, dtype=dtype, ranks=ranks)
    return Member(device, opened, made.worker, made.checkpoint, ranks)


def serve_rank(settings: Settings, meeting: Meeting) -> NoReturn:
    """Do what rank 0 says, and end this process when it lets us go or is gone itself."""
    try:
        member = enlist(settings, meeting)
        assert member.ranks is not None
        follow(member.worker, member.ranks)
        code = 0
    except Exception:  # noqa: BLE001  the process ends, and rank 0 notices
        _log.exception("rank ends", rank=meeting.rank)
        code = 1
    # gloo's threads may still run when an orderly end takes them apart, which aborts the process.
    os._exit(code)


def pick_device(settings: Settings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def free_address(host: str) -> str:
    """A port of this machine that is free now, as a place to meet."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
