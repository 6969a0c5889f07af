"""Read and write VAE weights.

Three layouts: our own directory (config.json and model.safetensors), the original
`Wan2.1_VAE.pth` (flat names, the model's own), and the diffusers directory, whose names differ.
Whatever does not fit exactly is refused with the list of what is wrong, before a tensor is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.runtime.weights import BadCheckpoint, fit
from services.vae.config import FILE, VaeConfig, wan21
from services.vae.model import Vae

_OWN = "model.safetensors"
_DIFFUSERS = "diffusion_pytorch_model.safetensors"


def load(path: Path) -> Vae:
    """The VAE at `path`: our directory, a diffusers directory, or a Wan2.1 `.pth` file.

    Parameters keep the dtype of the file. Files of other layouts than our own carry no config and
    are taken for Wan2.1.

    Raises:
        BadCheckpoint: not such a place, not readable, or names or shapes that do not fit.
    """
    if path.is_file():
        return build(wan21(), _read_pickle(path), str(path))
    if (path / _DIFFUSERS).is_file():
        tensors = _read_safetensors(path / _DIFFUSERS)
        return build(wan21(), from_diffusers(wan21(), tensors, str(path)), str(path))
    config = VaeConfig.read(path)
    return build(config, _read_safetensors(path / _OWN), str(path / _OWN))


def save(vae: Vae, directory: Path) -> None:
    """Write our own layout, so that `load` gives the same model again."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text(json.dumps(vae.config.to_json(), indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, directory / _OWN)


def build(config: VaeConfig, tensors: Mapping[str, Tensor], source: str) -> Vae:
    """A model of `config` that holds `tensors` (original names), in evaluation mode.

    Raises:
        BadCheckpoint: a name is missing or unexpected, or a shape is wrong.
    """
    with torch.device("meta"):
        vae = Vae(config)
    fit(source, found=_shapes(tensors), expected=_shapes(vae.state_dict()))
    vae.load_state_dict(dict(tensors), assign=True)
    for name, values in (("mean", config.latent_mean), ("std", config.latent_std)):
        vae.register_buffer(name, torch.tensor(values).view(-1, 1, 1, 1), persistent=False)
    return vae.eval().requires_grad_(False)


def from_diffusers(
    config: VaeConfig, tensors: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """`tensors` of diffusers' `AutoencoderKLWan` under their original names.

    Raises:
        BadCheckpoint: a name that the layout of `config` does not have.
    """
    names = dict(diffusers_names(config))
    unknown = sorted(tensors.keys() - names.keys())
    if unknown:
        raise BadCheckpoint(source, unexpected=unknown)
    return {names[theirs]: tensor for theirs, tensor in tensors.items()}


def diffusers_names(config: VaeConfig) -> Iterator[tuple[str, str]]:
    """Every parameter of `config` as (diffusers name, original name)."""
    with torch.device("meta"):
        vae = Vae(config)
    for ours in vae.state_dict():
        yield _theirs(ours, config), ours


def _theirs(name: str, config: VaeConfig) -> str:
    tower, _, rest = name.partition(".")
    if tower in ("conv1", "conv2"):
        return {"conv1": "quant_conv", "conv2": "post_quant_conv"}[tower] + f".{rest}"
    part, _, rest = rest.partition(".")
    if part == "conv1":
        return f"{tower}.conv_in.{rest}"
    if part == "head":
        index, _, parameter = rest.partition(".")
        return f"{tower}.{'norm_out' if index == '0' else 'conv_out'}.{parameter}"
    index, _, rest = rest.partition(".")
    if part == "middle":
        place = "attentions.0" if index == "1" else f"resnets.{int(index) // 2}"
        return f"{tower}.mid_block.{place}.{_block_name(rest)}"
    if part == "downsamples":
        return f"encoder.down_blocks.{index}.{_block_name(rest)}"
    stage, at = divmod(int(index), config.decoder.blocks + 1)
    kind = "upsamplers.0" if at == config.decoder.blocks else f"resnets.{at}"
    return f"decoder.up_blocks.{stage}.{kind}.{_block_name(rest)}"


_BLOCK_NAMES = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}


def _block_name(rest: str) -> str:
    module, _, parameter = rest.rpartition(".")
    return f"{_BLOCK_NAMES.get(module, module)}.{parameter}"


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadCheckpoint(str(path), why=f"cannot be read ({error})") from error
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise BadCheckpoint(str(path), why="expected a flat mapping of names to tensors")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadCheckpoint(str(path), why=f"cannot be read ({error})") from error


def _shapes(tensors: Mapping[str, Tensor | nn.Parameter]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
