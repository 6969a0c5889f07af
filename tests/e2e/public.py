"""Small downloads of public weights, in every format that is read, and what score is told of each.

They share one VAE with the latent space of Wan2.1, and the encoders of a Wan repository. Everything
is as published but for the number of layers and their width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from services.score import models
from services.score.config import AudioConfig
from services.vae.checkpoint import save
from services.vae.config import tiny
from services.vae.model import Vae
from tests.score import encoders, s2v
from tests.score.checkpoints import (
    FANTASYTALKING,
    I2V,
    MULTITALK,
    T2V,
    only_audio,
    tensors,
    write_fantasytalking_pickle,
    write_wan,
)
from tests.score.frontends import network

SIDE = 64  # pixels

_CLIP = (1280, 257, 14)  # every published size of it: a config.json does not say
_HIDDEN, _LAYERS = 16, 3  # of the small wav2vec 2.0

Settings = dict[str, Any]


def write_public(folder: Path) -> dict[str, Settings]:
    """Settings of score by format; `folder` also gets the VAE."""
    torch.manual_seed(7)
    _write_vae(folder / "vae")
    encoders.write(folder / "encoders", picture=_CLIP)
    for name, stable in (("large", True), ("base", False)):  # for S2V; for Wan2.1
        network(stable=stable).save_pretrained(folder / name)
    formats: dict[str, Callable[[Path], Settings]] = {
        "wan2.2-s2v": _s2v,
        "liveavatar": _live_avatar,
        "realvideo": _realvideo,
        "converted": _converted,
        "multitalk": _multitalk,
        "fantasytalking": _fantasytalking,
        "self-forcing": _self_forcing,
    }
    shared = {
        "size": f"{SIDE}x{SIDE}",
        "dtype": "float32",
        "encoders": {"folder": str(folder / "encoders"), "dtype": "float32"},
    }
    return {name: shared | write(folder) for name, write in formats.items()}


def _s2v(folder: Path) -> Settings:
    s2v.write_wan22(folder / "s2v", s2v.tensors())
    return {"model": str(folder / "s2v"), "wav2vec": str(folder / "large")}


def _live_avatar(folder: Path) -> Settings:
    adapters, _ = s2v.write_live_avatar(folder / "liveavatar.safetensors")
    return _s2v(folder) | {"loras": [{"path": str(adapters)}]}


def _realvideo(folder: Path) -> Settings:
    model = s2v.write_realvideo(folder / "model.pt", s2v.tensors(seed=1))
    return {"model": str(model), "wav2vec": str(folder / "large")}


def _converted(folder: Path) -> Settings:
    """Our own folder, which the command line made of RealVideo's file."""
    out = folder / "converted"
    model, size = str(folder / "model.pt"), f"{SIDE}x{SIDE}"
    assert models.main(["convert", model, str(out), "--dtype", "bf16", "--size", size]) == 0
    # It knows its size by now.
    return {"model": str(out), "wav2vec": str(folder / "large"), "size": None}


def _multitalk(folder: Path) -> Settings:
    """Over a Wan2.1-I2V repository; InfiniteTalk has the same layout."""
    audio = replace(MULTITALK, embedding_dim=_HIDDEN * _LAYERS)
    base, heard = _split(audio)
    save_file(heard, folder / "multitalk.safetensors")
    return {
        "model": str(write_wan(folder / "i2v", I2V, base)),
        "audio": str(folder / "multitalk.safetensors"),
        "wav2vec": str(folder / "base"),
    }


def _fantasytalking(folder: Path) -> Settings:
    """Over the base as diffusers keeps it."""
    _, heard = _split(replace(FANTASYTALKING, embedding_dim=_HIDDEN))
    base = WanTransformer3DModel(
        num_attention_heads=I2V.heads,
        attention_head_dim=I2V.dim // I2V.heads,
        in_channels=36,
        out_channels=16,
        text_dim=encoders.TEXT,
        ffn_dim=I2V.ffn_dim,
        num_layers=I2V.layers,
        image_dim=_CLIP[0],
        added_kv_proj_dim=I2V.dim,
    )
    base.save_pretrained(folder / "diffusers" / "transformer")
    (folder / "diffusers" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return {
        "model": str(folder / "diffusers"),
        "audio": str(write_fantasytalking_pickle(folder / "fantasytalking_model.ckpt", heard)),
        "wav2vec": str(folder / "base"),
    }


def _self_forcing(folder: Path) -> Settings:
    student = {f"model.{name}": weights for name, weights in tensors(T2V).items()}
    torch.save({"generator_ema": student}, folder / "self_forcing_dmd.pt")
    return {"model": str(folder / "self_forcing_dmd.pt")}


def _split(audio: AudioConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of a base, and what hears for it."""
    weights = tensors(replace(I2V, audio=audio))
    heard = only_audio(weights)
    return {name: w for name, w in weights.items() if name not in heard}, heard


def _write_vae(folder: Path) -> None:
    tower = replace(tiny().encoder, widths=(8, 8, 8), taps=(1, 1, 1), middle_taps=1)
    vae = replace(tiny(), encoder=tower, decoder=tower, norm_groups=2)
    save(Vae(vae).eval().requires_grad_(False), folder)
