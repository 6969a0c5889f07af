"""Small checkpoints in the published layouts, written as their authors' tools write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.score.checkpoint.opening import expected_shapes
from services.score.config import (
    AnchorConfig,
    AudioConfig,
    ClipConfig,
    DitConfig,
    FantasyTalkingAudio,
    MultiTalkAudio,
    TextConfig,
)
from services.score.frontend.config import Wav2Vec2FrontEnd

CPU = torch.device("cpu")
STEM = "diffusion_pytorch_model"

# Heads of 128, as in every published size.
T2V = DitConfig(dim=256, ffn_dim=64, heads=2, layers=3, text=TextConfig(dim=24))
I2V = DitConfig(
    dim=128,
    ffn_dim=64,
    heads=1,
    layers=2,
    text=TextConfig(dim=24),
    clip=ClipConfig(),
    anchor=AnchorConfig(),
)
MULTITALK = AudioConfig(
    adapter=MultiTalkAudio(hidden=12, tokens=3, width=16),
    front_end=Wav2Vec2FrontEnd(states="transformer", every=2),
    embedding_dim=10,
    per_latent=4,
    before=2,
    after=2,
)
FANTASYTALKING = AudioConfig(
    adapter=FantasyTalkingAudio(width=20),
    front_end=Wav2Vec2FrontEnd(states="last"),
    embedding_dim=10,
    per_latent=8,
    before=4,
    after=5,
)


def tensors(config: DitConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random float32 weights of a model, by its names."""
    torch.manual_seed(seed)
    return {name: 0.1 * torch.randn(shape) for name, shape in expected_shapes(config).items()}


def only_audio(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = ("audio_proj.", ".norm_x.", ".audio_cross_attn.", ".processor.")
    return {name: w for name, w in weights.items() if any(part in name for part in parts)}


def wan_json(config: DitConfig) -> dict[str, object]:
    """`config.json` of a Wan2.1 repository."""
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": config.dim,
        "eps": 1e-06,
        "ffn_dim": config.ffn_dim,
        "freq_dim": 256,
        "in_dim": config.in_channels,
        "model_type": "i2v" if config.clip else "t2v",
        "num_heads": config.heads,
        "num_layers": config.layers,
        "out_dim": 16,
        "text_len": 512,
        # Published repositories leave this to a default, which is too large for a test.
        "text_dim": config.text.dim if config.text else 0,
    }


def write_wan(folder: Path, config: DitConfig, weights: dict[str, Tensor], shards: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(wan_json(config)))
    write_shards(folder, weights, shards)
    return folder


def write_shards(folder: Path, weights: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(weights, folder / f"{STEM}.safetensors")
        return
    names = sorted(weights)
    where = {}
    for shard in range(shards):
        file = f"{STEM}-{shard + 1:05d}-of-{shards:05d}.safetensors"
        held = names[shard::shards]
        save_file({name: weights[name] for name in held}, folder / file)
        where.update(dict.fromkeys(held, file))
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))


def write_fantasytalking_pickle(file: Path, weights: dict[str, Tensor]) -> Path:
    projection = {
        name.removeprefix("audio_proj."): w
        for name, w in weights.items()
        if name.startswith("audio_proj.")
    }
    processor = {name: w for name, w in weights.items() if name.startswith("blocks.")}
    torch.save({"proj_model": projection, "audio_processor": processor}, file)
    return file


def write_fantasytalking_safetensors(file: Path, weights: dict[str, Tensor]) -> Path:
    def theirs(name: str) -> str:
        if name.startswith("audio_proj."):
            return f"proj_model.{name.removeprefix('audio_proj.')}"
        return f"audio_processor.{name}"

    save_file({theirs(name): w for name, w in weights.items()}, file)
    return file


def write_lora(
    file: Path,
    changes: Mapping[str, tuple[Tensor, Tensor]],
    *,
    prefix: str = "base_model.model.",
    halves: tuple[str, str] = ("lora_A.weight", "lora_B.weight"),
) -> Path:
    """`changes`: module name → (A [rank, columns], B [rows, rank])."""
    held = {}
    for module, (a, b) in changes.items():
        held[f"{prefix}{module}.{halves[0]}"] = a
        held[f"{prefix}{module}.{halves[1]}"] = b
    save_file(held, file)
    return file
