"""A checkpoint's name: which weights, under which configuration, in which number format.

Beside loading. Conditioning and sessions made with one checkpoint mean nothing to another, so every
replica says which one it has; replicas that say the same draw the same.
"""

from __future__ import annotations

import hashlib
import json

import torch

from services.runtime.strict_json import write
from services.score.model import Dit

_SAMPLES = 256  # values of each tensor: a 16B model has to name itself in seconds


def identity(model: Dit) -> str:
    """A digest of configuration, and of names, formats, shapes and spread values of all tensors."""
    digest = hashlib.sha256(json.dumps(write(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        places = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), device="cpu")
        sample = flat[places.long().to(flat.device)].cpu()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return f"score-{digest.hexdigest()[:20]}"
