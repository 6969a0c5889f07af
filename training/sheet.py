"""Pictures of how a training run is doing: rows of frames side by side in one PNG.

Beside `run.py`. Writes PNG itself (RFC 2083), since a rented GPU machine may have torch and little
else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def write_png(picture: Tensor, path: Path) -> None:
    """Write a uint8 picture [3, H, W]; the file appears whole or not at all."""
    assert picture.dtype == torch.uint8, picture.dtype
    _, height, width = picture.shape
    lines = torch.zeros(height, 1 + 3 * width, dtype=torch.uint8)  # each begins with its filter: 0
    lines[:, 1:] = picture.cpu().permute(1, 2, 0).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(lines.numpy().tobytes(), 6)
    parts = [_chunk(b"IHDR", header), _chunk(b"IDAT", body), _chunk(b"IEND", b"")]
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    unfinished.replace(path)


def grid(rows: Sequence[Tensor]) -> Tensor:
    """Rows of frames [N, 3, H, W] in -1..1, one under the other: uint8 [3, rows * H, N * W]."""
    lines = [torch.cat(list(row.float().cpu()), dim=2) for row in rows]
    return ((torch.cat(lines, dim=1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
