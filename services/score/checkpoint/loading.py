"""Bring a checkpoint into memory, and write one: `open_checkpoint` comes before, the engine after.

The model is laid out without memory first; each tensor then goes from its file to its place on the
device, so that beside the model itself only one tensor is ever held.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from services.runtime.weights import BadCheckpoint, fit
from services.score.checkpoint.opening import Checkpoint
from services.score.checkpoint.tensors import read_file, shapes, write_folder
from services.score.config import DitConfig
from services.score.frontend.config import MelFrontEnd
from services.score.frontend.features import FrontEnd
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.frontend.wav2vec import load_wav2vec
from services.score.model import Dit

FRONT_END = "front_end.safetensors"
WAV2VEC = "wav2vec2"

_SHARD_BYTES = 4 << 30
# All layers are scaled by the embedded noise level: as in the reference, not in 16 bits.
FLOAT32 = re.compile(r"^time_(embedding|projection)\.|(^|\.)modulation$")


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> Dit:
    """The transformer on `device`, for inference.

    Its weights have `dtype`, apart from what embeds and applies the noise level: float32.
    """
    with torch.device("meta"):
        model = Dit(checkpoint.config)
    state = {
        # The copy cuts the tie to a file that may change while the model serves.
        name: stored.read(device).to(_dtype_of(name, dtype), copy=True)
        for name, stored in checkpoint.weights.items()
    }
    model.load_state_dict(state, assign=True)
    _fill_constants(model, device, dtype)
    return model.eval().requires_grad_(False)


def load_front_end(
    checkpoint: Checkpoint, *, device: torch.device, wav2vec: Path | None = None
) -> FrontEnd:
    """What hears for this checkpoint, in float32.

    Args:
        wav2vec: a wav2vec 2.0 folder, for layouts that do not hold one.

    Raises:
        BadCheckpoint: the checkpoint does not hear, or its front end is absent or does not fit.
    """
    audio, folder = checkpoint.config.audio, checkpoint.path
    if audio is None:
        raise BadCheckpoint(str(folder), why="it has no audio weights and hears nothing")
    front_end: FrontEnd
    if isinstance(audio.front_end, MelFrontEnd):
        front_end = _speech_encoder(folder / FRONT_END, audio.front_end).to(device)
    else:
        network = wav2vec if wav2vec is not None else folder / WAV2VEC
        front_end = load_wav2vec(network, audio.front_end, device)
        front_end.requires_grad_(False)
    width = torch.Size(front_end.feature_shape).numel()
    if width != audio.embedding_dim:
        why = f"it hears embeddings of {audio.embedding_dim} numbers, its front end gives {width}"
        raise BadCheckpoint(str(folder), why=why)
    return front_end


def save(
    folder: Path,
    config: DitConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write our own layout: `config.json` and `model.safetensors` or its shards.

    `tensors` are those of `Dit`, by name; they are read one shard at a time.
    """
    write_folder(folder, "model", tensors, shard_bytes=shard_bytes)
    config.write(folder / "config.json")


def save_front_end(folder: Path, encoder: SpeechEncoder) -> None:
    """Write the front end beside its transformer."""
    save_file(encoder.state_dict(), folder / FRONT_END, {"format": "pt"})


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if FLOAT32.search(name) else dtype


def _fill_constants(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give memory to what is not stored because it is always the same."""
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            assert name == "audio_proj.silence", name
            owner = model.get_submodule(name.rpartition(".")[0])
            owner.silence = torch.zeros(buffer.shape, device=device, dtype=dtype)


def _speech_encoder(file: Path, config: MelFrontEnd) -> SpeechEncoder:
    if not file.is_file():
        raise BadCheckpoint(str(file), why="the front end's weights are absent")
    found, host = read_file(file), torch.device("cpu")
    with torch.device("meta"):
        needed = SpeechEncoder(config).state_dict()
    expected = {name: tuple(value.shape) for name, value in needed.items()}
    fit(str(file), found=shapes(found), expected=expected)
    encoder = SpeechEncoder(config)
    encoder.load_state_dict({name: stored.read(host).float() for name, stored in found.items()})
    return encoder.eval().requires_grad_(False)
