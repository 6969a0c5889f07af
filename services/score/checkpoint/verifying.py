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
from services.score.checkpoint.damage import SUFFIXES, damage
from services.score.checkpoint.inspection import addition, inspect
from services.score.checkpoint.lora import Lora
from services.score.checkpoint.opening import Checkpoint, Layout, open_checkpoint
from services.score.checkpoint.recipes import Recipe
from services.score.checkpoint.tensors import read_json
from services.score.config import DitConfig
from services.score.encoders.conditioning import Encoders
from services.score.encoders.prompts import TOKENIZER
from services.score.frontend.config import Wav2Vec2FrontEnd
from talkingmachines.weights import FILES, PICTURE_ENCODER, TEXT_ENCODER, VAE, KnownFile

_BLOCK = 1 << 24
_WAV2VEC = ("wav2vec2-large-xlsr-53-english", "wav2vec2")
_WAV2VEC_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ENCODERS = "TM_SCORE_ENCODERS__FOLDER"
_UNFINISHED = {".incomplete", ".part", ".aria2", ".crdownload", ".tmp"}
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
    """All findings; none is bad where a call could be drawn with what is there.

    Adapters or audio weights alone are well when they are whole.
    """
    found = list(_published(path if path.is_dir() else path.parent, hashes=hashes))
    broken = {file: why for file in _files(path) if (why := damage(file)) is not None}
    found += [Finding(good=False, text=f"{file.name}: {why}") for file, why in broken.items()]
    try:
        alone = addition(path) if audio is None and not loras else None
        if alone is not None:
            return [*found, Finding(good=True, text=" | ".join(map(str.strip, alone)))]
        opened = open_checkpoint(path, audio=audio, loras=loras, recipe=recipe)
        told = inspect(path, audio=audio, loras=loras)
    except BadCheckpoint as error:
        if Path(error.source) not in broken:
            found.append(Finding(good=False, text=f"{error}{_advice(path)}"))
        return found
    found.append(Finding(good=True, text=" | ".join(line.strip() for line in told[:2])))
    return [*found, *_companions(opened)]


def _files(path: Path) -> list[Path]:
    """Weights whose wholeness nobody publishes: here, in diffusers' folder and wav2vec 2.0's."""
    known, base = {one.name for one in FILES}, path.parent if path.is_file() else path
    folders = [base / name for name in _WAV2VEC]
    folders += [] if path.is_file() else [path, path / "transformer"]
    there = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
    files = [file for file in there if file.suffix in SUFFIXES and file.name not in known]
    return [file for file in [*files, path] if file.is_file()]


def _advice(path: Path) -> str:
    """What a folder is, that holds no transformer."""
    if not path.exists():
        return ""
    if path.name == VAE.name or (path.is_dir() and _is_vae(path)):
        return "; a video VAE: it is for TM_VAE_MODEL"
    if path.is_dir() and not any(path.iterdir()):
        return "; the folder is empty: `talkingmachines models list` says what to fetch"
    left = (
        [file.name for file in path.iterdir() if file.suffix in _UNFINISHED]
        if path.is_dir()
        else []
    )
    return f"; not finished: {', '.join(left)}" if left else ""


def _is_vae(folder: Path) -> bool:
    try:
        described = read_json(folder / "config.json")
    except (BadCheckpoint, OSError):
        return False
    return "encoder" in described or "AutoencoderKL" in str(described.get("_class_name"))


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
        yield _encoders(folder, config)
    if config.audio is not None and isinstance(config.audio.front_end, Wav2Vec2FrontEnd):
        yield _wav2vec(folder)
    if opened.layout is not Layout.OWN and not (folder / VAE.name).is_file():
        yield Finding(good=False, text=f"no video VAE beside it; {_fetch([_sized(VAE)])}")


def _encoders(folder: Path, config: DitConfig) -> Finding:
    """Of prompts and pictures."""
    needed: dict[Path, str] = {}
    if config.text is not None:
        needed = {TOKENIZER: str(TOKENIZER), Path(TEXT_ENCODER.name): _sized(TEXT_ENCODER)}
    if config.clip is not None:
        needed[Path(PICTURE_ENCODER.name)] = _sized(PICTURE_ENCODER)
    absent = [what for name, what in needed.items() if not (folder / name).is_file()]
    if absent:
        text = f"encoders of prompts and pictures are not beside it; {_fetch(absent)}"
        return Finding(good=False, text=f"{text}, or name their folder in {_ENCODERS}")
    try:
        Encoders(folder, config, device=_HOST)
    except BadCheckpoint as error:
        return Finding(good=False, text=str(error))
    return Finding(good=True, text="encoders of prompts and pictures: beside it")


def _wav2vec(folder: Path) -> Finding:
    places = [folder / name for name in _WAV2VEC]
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        text = (
            f"no wav2vec 2.0 folder beside it ({' or '.join(_WAV2VEC)}): fetch the one it was "
            "trained with, and name it in TM_SCORE_WAV2VEC"
        )
        return Finding(good=False, text=text)
    if not (place / "config.json").is_file():
        return Finding(good=False, text=f"wav2vec 2.0: {place.name} has no config.json; fetch it")
    if not any((place / name).is_file() for name in _WAV2VEC_WEIGHTS):
        lacks = f"{place.name} has no {' or '.join(_WAV2VEC_WEIGHTS)}; fetch one"
        return Finding(good=False, text=f"wav2vec 2.0: {lacks}")
    return Finding(good=True, text=f"wav2vec 2.0: {place.name}")


def _sized(known: KnownFile) -> str:
    return f"{known.name} ({known.bytes / 1e9:.1f} GB)"


def _fetch(names: Sequence[str]) -> str:
    return f"fetch {', '.join(names)} from the repository of its base, or link them there"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
