"""Read and write VAE weights.

Three layouts: our own directory (config.json and model.safetensors), the original
`Wan2.1_VAE.pth` (flat names, the model's own), and the diffusers directory. Whatever does not fit
exactly is refused with the list of what is wrong, before a tensor is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.runtime import strict_json
from services.runtime.weights import BadCheckpoint, fit
from services.vae import diffusers_layout
from services.vae.config import VaeConfig, wan21
from services.vae.model import Vae

_OWN = "model.safetensors"
_SHOWN = 12  # names in a message


def load(path: Path) -> Vae:
    """The VAE at `path`: our directory, a diffusers directory, or a `.pth` file.

    Parameters keep the dtype of the file. A `.pth` file carries no config and is taken for Wan2.1.

    Raises:
        BadCheckpoint: nothing there, not readable, or names or shapes that do not fit.
    """
    if path.is_file():
        return build(wan21(), _read_pickle(path), str(path))
    theirs = path / diffusers_layout.WEIGHTS
    if theirs.is_file():
        config = diffusers_layout.read_config(path)
        renamed = diffusers_layout.rename(config, _read_safetensors(theirs), str(theirs))
        return build(config, renamed, str(theirs))
    return build(VaeConfig.read(path), _read_safetensors(path / _OWN), str(path / _OWN))


def save(vae: Vae, directory: Path) -> None:
    """Write our own layout, from which `load` gives the same model again."""
    directory.mkdir(parents=True, exist_ok=True)
    vae.config.write(directory)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in vae.state_dict().items()}
    save_file(tensors, directory / _OWN)


def build(config: VaeConfig, tensors: Mapping[str, Tensor], source: str) -> Vae:
    """A model of `config` that holds `tensors` (original names), ready to serve.

    Raises:
        BadCheckpoint: a name is missing or unexpected, a shape is wrong, or a tensor does not hold
            finite floating-point numbers.
    """
    with torch.device("meta"):
        vae = Vae(config)
    fit(source, found=_shapes(tensors), expected=_shapes(vae.state_dict()))
    unusable = sorted(name for name, tensor in tensors.items() if _weightless(tensor))
    if unusable:
        why = f"expected finite floating-point numbers in {', '.join(unusable[:_SHOWN])}"
        raise BadCheckpoint(source, why=why)
    vae.load_state_dict(dict(tensors), assign=True)
    vae.set_normalisation(config)
    return vae.eval().requires_grad_(False)


def identity(vae: Vae) -> str:
    """The name of weights and configuration: the same on every machine, whatever they run in.

    Anchors and sessions made with one VAE mean nothing to another. Ask before the weights are
    placed: it reads them all.
    """
    digest = hashlib.sha256(json.dumps(strict_json.write(vae.config), sort_keys=True).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.to("cpu", torch.float32).contiguous().numpy())
    return f"vae-{digest.hexdigest()[:20]}"


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken pickle raises, nobody has listed
        why = f"cannot be read ({type(error).__name__}: {_line(error)})"
        raise BadCheckpoint(str(path), why=why) from error
    named = isinstance(tensors, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    )
    if not named:
        raise BadCheckpoint(str(path), why="expected a flat mapping of names to tensors")
    return dict(tensors)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise BadCheckpoint(str(path), why=f"cannot be read ({_line(error)})") from error


def _weightless(tensor: Tensor) -> bool:
    """Whether `tensor` cannot be a weight: not plain floating-point numbers, all of them finite."""
    plain = tensor.layout is torch.strided and not tensor.is_meta and tensor.is_floating_point()
    return not plain or not bool(tensor.isfinite().all())


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
