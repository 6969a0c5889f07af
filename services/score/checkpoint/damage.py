"""Say of a file of weights what happened to it on its way here, without reading the weights.

Below `verifying.py`. Downloads end early, proxies answer with pages, and `git clone` without LFS
leaves pointers: readers of tensors call all of that unreadable.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from services.score.checkpoint.tensors import PICKLES

SUFFIXES = (".safetensors", *sorted(PICKLES))

_LFS, _ZIP, _PICKLE = b"version https://git-lfs", b"PK\x03\x04", b"\x80"
_HEAD = 64  # bytes
_MOST_HEADER = 100 << 20  # bytes; the format's own limit


def damage(file: Path) -> str | None:
    """What is wrong with it and what to do, for a person; None where nothing can be seen."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    if not head:
        return "empty; fetch it anew"
    if head.startswith(_LFS):
        return "a pointer of Git LFS, not the file: run `git lfs pull` there, or fetch it"
    if head.lstrip()[:1] == b"<":
        return "a web page, not weights: fetch it anew, signed in where its publisher asks for that"
    if file.suffix == ".safetensors":
        return _safetensors(file)
    return _pickle(file, head)


def _safetensors(file: Path) -> str | None:
    """Its header says how long it is."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > _MOST_HEADER:
            return "not a safetensors file"
        header = opened.read(length)
    if len(header) < length:
        return _cut(size)
    try:
        described = json.loads(header)
        ends = [one["data_offsets"][1] for name, one in described.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return "not a safetensors file"
    if size < whole:
        return _cut(size, whole)
    return None if size == whole else f"{size:,} bytes, {whole:,} by its header; fetch it anew"


def _pickle(file: Path, head: bytes) -> str | None:
    """torch writes an archive whose list of contents comes last; old ones are a bare pickle."""
    if zipfile.is_zipfile(file) or head.startswith(_PICKLE):
        return None
    return _cut(file.stat().st_size) if head.startswith(_ZIP) else "not a file of torch"


def _cut(size: int, whole: int | None = None) -> str:
    of = f" of {whole:,}" if whole else ""
    return f"{size:,}{of} bytes: a download that was cut off; fetch it anew"
