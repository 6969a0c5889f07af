"""Say in plain words what a checkpoint is and what it needs.

Beside `loading.py`; behind `python -m services.score.checkpoint inspect`. Reads headers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from services.score.checkpoint.audio import audio_weights
from services.score.checkpoint.loading import FRONT_END, WAV2VEC
from services.score.checkpoint.lora import Lora, is_lora, lora_file, read_pairs
from services.score.checkpoint.opening import Checkpoint, Layout, open_checkpoint
from services.score.checkpoint.tensors import Weights, count, read_file, size
from services.score.config import DitConfig, MultiTalkAudio, PaperAudio, S2vAudio
from services.score.frontend.config import MelFrontEnd

_16_BIT = 2  # bytes

_WAN_COMPANIONS = (
    ("video VAE", "Wan2.1_VAE.pth"),
    ("text encoder", "models_t5_umt5-xxl-enc-bf16.pth"),
    ("tokenizer", "google/umt5-xxl"),
    ("picture encoder", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"),
)
_DIFFUSERS_COMPANIONS = (
    ("video VAE", "vae"),
    ("text encoder", "text_encoder"),
    ("tokenizer", "tokenizer"),
    ("picture encoder", "image_encoder"),
)


def inspect(path: Path, *, audio: Path | None = None, loras: Sequence[Lora] = ()) -> list[str]:
    """Lines for a person. Audio weights or adapters may also be inspected alone.

    Raises:
        BadCheckpoint: it does not fit together; the message names the tensors.
    """
    if audio is None and not loras and (told := addition(path)) is not None:
        return told
    checkpoint = open_checkpoint(path, audio=audio, loras=loras)
    return list(_transformer(checkpoint, adapters=len(loras)))


def addition(path: Path) -> list[str] | None:
    """Lines on audio weights or adapters, which are nothing without a transformer; None if neither.

    Raises:
        BadCheckpoint: it cannot be read.
    """
    file = lora_file(path)
    if file is None or not file.is_file():
        return None
    alone = read_file(file)
    if is_lora(alone):
        return _adapters(file, alone)
    if "patch_embedding.weight" not in alone and (heard := audio_weights(str(path), alone)):
        return _audio_weights(path, heard.title, heard.weights)
    return None


def _transformer(checkpoint: Checkpoint, *, adapters: int) -> Iterator[str]:
    config = checkpoint.config
    task = "image-to-video" if config.anchor else "text-to-video"
    if config.reference:
        task = "speech-to-video"
    yield f"{checkpoint.path}: {task} transformer in {checkpoint.layout.value}"
    yield _line("size", f"{_measured(checkpoint.weights)}; {_sizes(config)}")
    if adapters:
        yield _line("adapters", f"{adapters} merged while loading; they cost nothing afterwards")
    yield _line("speech", _speech(config))
    yield _line("stream", _stream(config))
    yield _line("sampling", _sampling(checkpoint))
    yield _line("memory", _memory(config, checkpoint.weights))
    for need in _needs(checkpoint):
        yield _line("needs", need)


def _audio_weights(path: Path, title: str, weights: Weights) -> list[str]:
    return [
        f"{path}: audio weights of {title}",
        _line("size", _measured(weights)),
        _line("needs", "the Wan2.1 image-to-video transformer it was trained on: --audio"),
        _line("needs", "a wav2vec 2.0 folder"),
    ]


def _adapters(path: Path, weights: Weights) -> list[str]:
    _, pairs = read_pairs(Lora(path))
    ranks = [pair.rank for pair in pairs.values()]
    silent = any(pair.scale is None for pair in pairs.values())
    return [
        f"{path}: low-rank adapters, {len(pairs)} pairs of rank {_spanned(ranks)}",
        _line("size", _measured(weights)),
        _line("needs", "the transformer it was trained on: --lora"),
        *(
            [_line("needs", "its alpha: --lora PATH=ALPHA; nothing beside it says so")]
            if silent
            else []
        ),
    ]


def _spanned(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def _measured(weights: Weights) -> str:
    kinds = sorted({str(stored.dtype).removeprefix("torch.") for stored in weights.values()})
    return f"{_many(count(weights))} parameters, {' and '.join(kinds)}, {_bytes(size(weights))}"


def _sizes(config: DitConfig) -> str:
    named = {(5120, 40): "14B class: ", (1536, 30): "1.3B class: "}
    name = named.get((config.dim, config.layers), "")
    return f"{name}width {config.dim}, {config.layers} layers, {config.heads} heads"


def _speech(config: DitConfig) -> str:
    audio = config.audio
    if audio is None:
        return "hears none: it will not talk until audio weights are given or trained"
    match audio.adapter:
        case PaperAudio():
            title = "the paper's module"
        case MultiTalkAudio():
            title = "MultiTalk's adapter"
        case S2vAudio():
            title = "Wan2.2-S2V's injector"
        case _:
            title = "FantasyTalking's adapter"
    front = "log-mel and convolutions" if isinstance(audio.front_end, MelFrontEnd) else "wav2vec2"
    history = config.history_samples / config.stream.sample_rate
    return (
        f"{title} after {front}; a latent frame hears {audio.window} embeddings; "
        f"{history:.2f} s of the past, {config.spec.lookahead_seconds:.2f} s of look-ahead"
    )


def _stream(config: DitConfig) -> str:
    stream = config.stream
    return (
        f"{stream.width}x{stream.height} at {stream.fps} fps, chunks of "
        f"{1000 * config.spec.chunk_seconds:.0f} ms, speech at {stream.sample_rate} Hz"
    )


def _sampling(checkpoint: Checkpoint) -> str:
    schedule, context = checkpoint.config.schedule, checkpoint.config.context
    levels = ", ".join(f"{level:g}" for level in schedule.levels)
    told = (
        f"{len(schedule.levels)} steps at {levels}, shift {schedule.shift:g}; "
        f"context {context.policy}, {context.chunks} chunks visible"
    )
    if checkpoint.layout is Layout.OWN:
        return told
    if checkpoint.recipe is not None:
        return f"{told} (recipe {checkpoint.recipe}: the files do not say)"
    return f"{told} (assumed: this layout does not say how the weights were distilled)"


def _memory(config: DitConfig, weights: Weights) -> str:
    token = 2 * config.layers * config.dim * _16_BIT  # keys and values, self or cross attention
    described = (config.text.tokens if config.text else 0) + (
        config.clip.tokens if config.clip else 0
    )
    session = config.windows * config.context.chunks * config.chunk_tokens * token
    avatar = (config.anchor_tokens + described) * token
    return (
        f"in 16 bits {_bytes(count(weights) * _16_BIT)} of weights, "
        f"{_bytes(avatar)} per avatar and {_bytes(session)} per session of keys and values"
    )


def _needs(checkpoint: Checkpoint) -> Iterator[str]:
    path, config = checkpoint.path, checkpoint.config
    folder = path if path.is_dir() else path.parent
    if checkpoint.layout is Layout.OWN:
        yield "the video VAE of its latent space, in the VAE service"
        yield from _own_front_end(folder, config)
        return
    companions = _WAN_COMPANIONS
    if checkpoint.layout is Layout.DIFFUSERS:
        companions = _DIFFUSERS_COMPANIONS
        folder = folder if (folder / "model_index.json").is_file() else folder.parent
    for what, name in companions:
        if what != "picture encoder" or config.clip is not None:
            yield f"{what}: {name}, {_state(folder / name)}"
    if config.audio is not None:
        yield "a wav2vec 2.0 folder"


def _own_front_end(folder: Path, config: DitConfig) -> Iterator[str]:
    if config.audio is None:
        return
    name = FRONT_END if isinstance(config.audio.front_end, MelFrontEnd) else WAV2VEC
    yield f"front end: {name}, {_state(folder / name)}"


def _state(path: Path) -> str:
    return "found" if path.exists() else "not beside it"


def _line(title: str, text: str) -> str:
    return f"  {title:<9} {text}"


def _many(number: int) -> str:
    return f"{number / 1e9:.3f} billion" if number >= 1e8 else f"{number / 1e6:.2f} million"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
