"""Whether what a caller sends fits the model: shapes, lengths, numbers.

Beside `engine.py`, which calls these before it computes and trusts what has passed. Every refusal
names its field as the servicer's caller knows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from services.score.config import DitConfig
from services.score.contract import Avatar, LogTail, PastChunk, Rectangle, Speech, TailSize
from talkingmachines.errors import BadInput
from talkingmachines.spec import StreamSpec

# A stream would take millions of years to get there; noise and sample counts hold far beyond it.
_CHUNKS = 1 << 48
# Latents leave, and are kept in logs, in 16 bits, and so may a model be.
_NARROWEST = torch.float16


def check_whole(field: str, value: object, *, least: int = 0, below: int = 1 << 63) -> None:
    """Raises BadInput unless `value` is a whole number from `least` up to, not with, `below`."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value < below:
        return
    # Whole numbers of thousands of digits have no text of their own.
    huge = isinstance(value, int) and value.bit_length() > 256
    got = "a far larger number" if huge else value
    raise BadInput(field, got=got, expected=f"a whole number from {least} to {below - 1}")


def check_avatar(avatar: Avatar, config: DitConfig) -> None:
    """Raises BadInput when the model cannot show `avatar`."""
    _check_tensor("avatar.anchor", avatar.anchor, (config.latent.channels, 1, *config.latent_size))
    if config.audio is not None and not avatar.faces:
        raise BadInput("avatar.faces", got="none", expected="at least one face")
    for number, face in enumerate(avatar.faces):
        _check_face(f"avatar.faces[{number}]", face, config.grid)
    if config.text is not None and avatar.text is None:
        raise BadInput("avatar.text", got="nothing", expected="the prompt's embeddings")
    for name in ("text", "listening_text"):
        text = getattr(avatar, name)
        if text is not None:
            _check_text(f"avatar.{name}", text, config)
    if config.clip is not None:
        if avatar.clip is None:
            raise BadInput("avatar.clip", got="nothing", expected="the picture's CLIP tokens")
        _check_tensor("avatar.clip", avatar.clip, (config.clip.tokens, config.clip.dim))


def check_speech(field: str, speech: Sequence[Speech], faces: int, spec: StreamSpec) -> None:
    """Raises BadInput unless there is speech of a chunk and its look-ahead for every face."""
    if len(speech) != faces:
        raise BadInput(field, got=f"{len(speech)} speakers", expected=f"{faces}, one per face")
    samples = spec.samples_per_chunk + spec.lookahead_samples
    for number, one in enumerate(speech):
        name = f"{field}[{number}].pcm"
        if one.pcm.dtype != np.int16 or one.pcm.ndim != 1:
            got = f"{one.pcm.dtype} {list(one.pcm.shape)}"
            raise BadInput(name, got=got, expected="int16 samples of one channel")
        if len(one.pcm) != samples:
            raise BadInput(name, got=f"{len(one.pcm)} samples", expected=str(samples))


def tail_size(config: DitConfig) -> TailSize:
    """How much of its log a session must show."""
    history = -(-config.history_samples // config.spec.samples_per_chunk)
    return TailSize(speech=history + config.context.replay, latents=config.context.replay)


def check_tail(tail: LogTail, faces: int, config: DitConfig) -> None:
    """Raises BadInput unless a session can go on from `tail`."""
    size, spec = tail_size(config), config.spec
    for index, past in enumerate(tail.chunks):
        check_whole(f"tail.chunks[{index}].chunk", past.chunk, below=_CHUNKS)
    wanted = min(size.speech, tail.next_chunk)
    if len(tail.chunks) < wanted:
        got = f"{len(tail.chunks)} chunks"
        raise BadInput("tail.chunks", got=got, expected=f"the last {wanted}")
    first = tail.next_chunk - len(tail.chunks)
    numbers = [past.chunk for past in tail.chunks]
    if numbers != list(range(first, tail.next_chunk)):
        raise BadInput("tail.chunks", got=numbers, expected="consecutive numbers from 0 up")
    for past in tail.chunks:
        check_speech(f"tail.chunks[{past.chunk}].speech", past.speech, faces, spec)
    for past in replayed(tail, config):
        _check_latents(past, config)


def replayed(tail: LogTail, config: DitConfig) -> Sequence[PastChunk]:
    """The chunks of a tail that rebuild a session's context."""
    return tail.chunks[max(0, len(tail.chunks) - config.context.replay) :]


def _check_latents(past: PastChunk, config: DitConfig) -> None:
    field = f"tail.chunks[{past.chunk}].latents"
    if past.latents is None:
        raise BadInput(field, got="nothing", expected="the chunk's latents")
    frames = config.stream.latents_per_chunk
    _check_tensor(field, past.latents, (config.latent.channels, frames, *config.latent_size))


def _check_face(field: str, face: Rectangle | Tensor, grid: tuple[int, int]) -> None:
    if isinstance(face, Tensor):
        _check_tensor(field, face, grid)
        if not bool(((face >= 0) & (face <= 1)).all()):
            raise BadInput(field, got="values outside 0 to 1", expected="a mask from 0 to 1")
        return
    sides = (face.left, face.top, face.right, face.bottom)
    ordered = 0 <= face.left < face.right <= 1 and 0 <= face.top < face.bottom <= 1
    if not all(math.isfinite(side) for side in sides) or not ordered:
        raise BadInput(field, got=sides, expected="left < right and top < bottom, within 0 to 1")


def _check_text(field: str, text: Tensor, config: DitConfig) -> None:
    if config.text is None:
        raise BadInput(field, got="a prompt", expected="none: this model reads no text")
    if text.ndim != 2 or not 1 <= len(text) <= config.text.tokens:
        expected = f"[1 to {config.text.tokens}, {config.text.dim}]"
        raise BadInput(field, got=list(text.shape), expected=expected)
    _check_tensor(field, text, (len(text), config.text.dim))


def _check_tensor(field: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise BadInput(field, got=list(tensor.shape), expected=f"shape {list(shape)}")
    if tensor.is_complex():
        raise BadInput(field, got=f"{tensor.dtype}", expected="real numbers")
    if not bool(tensor.to(_NARROWEST).isfinite().all()):
        largest = f"{torch.finfo(_NARROWEST).max:g}"
        got = f"a value beyond {largest}, or not a number"
        raise BadInput(field, got=got, expected=f"numbers from -{largest} to {largest}")
