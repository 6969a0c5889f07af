"""Write any checkpoint as our own: sharded safetensors with everything merged and stated.

Beside `loading.py`; behind `talkingmachines models convert`. FP8 halves what is stored and moved,
not what is computed: large matrices are kept in eight bits with a scale for every row, and are what
they were, to three bits, when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.loading import FLOAT32, save
from services.score.checkpoint.opening import Checkpoint
from services.score.checkpoint.tensors import SCALE, Stored

Format = Literal["float32", "bf16", "fp8"]

_HOST = torch.device("cpu")
_FP8 = torch.float8_e4m3fn
_SMALL = 1 << 16  # numbers: nothing is gained by rounding less than that


def convert(checkpoint: Checkpoint, folder: Path, kept: Format) -> None:
    """Write `checkpoint` to `folder`, one shard of it in memory at a time.

    Raises:
        BadCheckpoint: `folder` is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BadCheckpoint(str(folder), why="not empty: nothing is overwritten")
    save(folder, checkpoint.config, _tensors(checkpoint.weights, kept))


def _tensors(weights: Mapping[str, Stored], kept: Format) -> Iterator[tuple[str, Tensor]]:
    for name, stored in weights.items():
        tensor = stored.read(_HOST)
        if kept == "float32" or FLOAT32.search(name):
            yield name, tensor.float()
        elif kept == "fp8" and tensor.ndim == 2 and tensor.numel() > _SMALL:
            largest = tensor.float().abs().amax(1, keepdim=True).clamp(min=1e-12)
            scale = largest / torch.finfo(_FP8).max
            yield name, (tensor.float() / scale).to(_FP8)
            yield name + SCALE, scale
        else:
            yield name, tensor.bfloat16()
