"""Read the directory layout of diffusers' `AutoencoderKLWan`: other names, another config.

The names were read off the public implementation; a test holds them against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from services.runtime import strict_json
from services.runtime.weights import BadCheckpoint
from services.vae.config import FILE, TowerConfig, VaeConfig
from services.vae.model import Vae

WEIGHTS = "diffusion_pytorch_model.safetensors"

_BLOCK_NAMES = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}


def read_config(directory: Path) -> VaeConfig:
    """The config that a diffusers directory states.

    Raises:
        BadCheckpoint: no such file, not JSON, or a network that is not the one of Wan2.1.
    """
    path = directory / FILE
    try:
        tree = json.loads(path.read_text())
        if not isinstance(tree, dict):
            raise ValueError("expected an object")
        if tree.get("is_residual") or tree.get("attn_scales"):
            raise ValueError("is_residual and attn_scales: expected neither, as in Wan2.1")
        ours = {field.name: tree[field.name] for field in fields(_Theirs) if field.name in tree}
        return strict_json.read(_Theirs, ours).config()
    except (OSError, ValueError) as error:
        raise BadCheckpoint(str(path), why=str(error)) from error
    except RecursionError as error:
        raise BadCheckpoint(str(path), why="nested too deep to be a config") from error


def rename(config: VaeConfig, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`tensors` under their original names.

    Raises:
        BadCheckpoint: names that the layout of `config` does not have.
    """
    names = dict(name_pairs(config))
    unknown = sorted(tensors.keys() - names.keys())
    if unknown:
        raise BadCheckpoint(source, unexpected=unknown)
    return {names[theirs]: tensor for theirs, tensor in tensors.items()}


def name_pairs(config: VaeConfig) -> Iterator[tuple[str, str]]:
    """Every parameter of `config` as (diffusers name, original name)."""
    with torch.device("meta"):
        vae = Vae(config)
    for ours in vae.state_dict():
        yield _theirs(ours, config), ours


@dataclass(frozen=True, slots=True)
class _Theirs:
    """The fields of their config that shape the network."""

    base_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temperal_downsample: tuple[bool, ...]
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    decoder_base_dim: int | None = None
    patch_size: int | None = None

    def config(self) -> VaeConfig:
        encoder = TowerConfig(
            widths=tuple(self.base_dim * multiplier for multiplier in self.dim_mult),
            blocks=self.num_res_blocks,
            taps=(3,) * len(self.dim_mult),
            temporal=self.temperal_downsample,
            middle_taps=3,
            attention=True,
        )
        base = self.decoder_base_dim or self.base_dim
        decoder = replace(
            encoder,
            widths=tuple(base * multiplier for multiplier in reversed(self.dim_mult)),
            blocks=self.num_res_blocks + 1,
            temporal=self.temperal_downsample[::-1],
        )
        return VaeConfig(
            encoder, decoder, self.latents_mean, self.latents_std, patch=self.patch_size or 1
        )


def _theirs(name: str, config: VaeConfig) -> str:
    tower, _, rest = name.partition(".")
    if tower in ("conv1", "conv2"):
        return {"conv1": "quant_conv", "conv2": "post_quant_conv"}[tower] + f".{rest}"
    part, _, rest = rest.partition(".")
    if part == "conv1":
        return f"{tower}.conv_in.{rest}"
    index, _, rest = rest.partition(".")
    match part:
        case "head":
            return f"{tower}.{'norm_out' if index == '0' else 'conv_out'}.{rest}"
        case "middle":
            place = "attentions.0" if index == "1" else f"resnets.{int(index) // 2}"
            return f"{tower}.mid_block.{place}.{_block_name(rest)}"
        case "downsamples":
            return f"encoder.down_blocks.{index}.{_block_name(rest)}"
        case _:
            stage, at = divmod(int(index), config.decoder.blocks + 1)
            place = "upsamplers.0" if at == config.decoder.blocks else f"resnets.{at}"
            return f"decoder.up_blocks.{stage}.{place}.{_block_name(rest)}"


def _block_name(rest: str) -> str:
    module, _, parameter = rest.rpartition(".")
    return f"{_BLOCK_NAMES.get(module, module)}.{parameter}"
