"""Say of a download whether it is whole, and what to do where it is not.

Beside `inspection.py`; behind `talkingmachines models verify`. Names, shapes and, where they are
published, sizes and hashes. Everything that is wrong is told at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.inspection import inspect
from services.score.checkpoint.lora import Lora
from services.score.checkpoint.opening import Checkpoint, Layout, open_checkpoint
from services.score.checkpoint.recipes import Recipe
from services.score.encoders.conditioning import Encoders
from services.score.frontend.config import Wav2Vec2FrontEnd
from talkingmachines.weights import FILES, PICTURE_ENCODER, TEXT_ENCODER, VAE, KnownFile

_BLOCK = 1 << 24
_WAV2VEC = ("wav2vec2-large-xlsr-53-english", "wav2vec2")
_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    good: bool
    text: str  # for a person: what it is, or what is wrong and what to do

    def __str__(self) -> str:
        return f"{'ok     ' if self.good else 'WRONG  '} {self.text}"


def verify(
    path: Path,
    *,
    loras: Sequence[Lora] = (),
    audio: Path | None = None,
    recipe: Recipe | None = None,
    hashes: bool = True,
) -> list[Finding]:
    """All findings; none is bad where a call could be drawn with what is there."""
    found = list(_published(path if path.is_dir() else path.parent, hashes=hashes))
    try:
        opened = open_checkpoint(path, audio=audio, loras=loras, recipe=recipe)
        told = inspect(path, audio=audio, loras=loras)
    except BadCheckpoint as error:
        return [*found, Finding(good=False, text=str(error))]
    found.append(Finding(good=True, text=" | ".join(line.strip() for line in told[:2])))
    return [*found, *_companions(opened)]


def _published(folder: Path, *, hashes: bool) -> Iterator[Finding]:
    """Files whose size and hash are known, of those that are there."""
    for known in FILES:
        file = folder / known.name
        if not file.is_file():
            continue
        size = file.stat().st_size
        if size != known.bytes:
            what = "a download that was cut off" if size < known.bytes else "another file"
            text = f"{known.name}: {size:,} bytes instead of {known.bytes:,}: {what}; fetch it anew"
            yield Finding(good=False, text=text)
        elif hashes and _sha256(file) != known.sha256:
            text = f"{known.name}: not the published file, by its hash; fetch it anew"
            yield Finding(good=False, text=text)
        else:
            yield Finding(good=True, text=f"{known.name}: {'as published' if hashes else 'whole'}")


def _companions(opened: Checkpoint) -> Iterator[Finding]:
    folder = opened.path if opened.path.is_dir() else opened.path.parent
    config = opened.config
    if opened.layout is Layout.DIFFUSERS:
        return
    if config.text is not None or config.clip is not None:
        try:
            Encoders(folder, config, device=_HOST)
            yield Finding(good=True, text="encoders of prompts and pictures: beside it")
        except BadCheckpoint as error:
            files = [TEXT_ENCODER] if config.clip is None else [TEXT_ENCODER, PICTURE_ENCODER]
            yield Finding(good=False, text=f"{error}; {_fetch(files, 'google/umt5-xxl')}")
    if config.audio is not None and isinstance(config.audio.front_end, Wav2Vec2FrontEnd):
        places = [folder / name for name in _WAV2VEC]
        there = next((place for place in places if (place / "config.json").is_file()), None)
        text = f"wav2vec 2.0: {there.name}" if there else (
            f"no wav2vec 2.0 folder beside it ({' or '.join(_WAV2VEC)}): fetch the one it was "
            "trained with, and name it in TM_SCORE_WAV2VEC"
        )  # fmt: skip
        yield Finding(good=there is not None, text=text)
    if opened.layout is not Layout.OWN and not (folder / VAE.name).is_file():
        yield Finding(good=False, text=f"no video VAE beside it; {_fetch([VAE])}")


def _fetch(files: Sequence[KnownFile], *more: str) -> str:
    named = ", ".join([*(f"{one.name} ({one.bytes / 1e9:.1f} GB)" for one in files), *more])
    return f"fetch {named} from the repository of its base, or link them there"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
