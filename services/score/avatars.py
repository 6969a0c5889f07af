"""Avatars: where their faces lie, and which are kept.

Beside `engine.py`. Keys and values of an avatar's anchor, text and picture are computed once and
shared by its sessions; `AvatarShelf` decides which stay when nobody uses them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from services.score.contract import Avatar, Rectangle
from talkingmachines.errors import BadInput, NoCapacity, TalkingMachinesError


def face_mask(face: Rectangle | Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of a face every token shows: [token rows, token columns] float32, 0 to 1."""
    if isinstance(face, Tensor):
        return face.float()
    rows, columns = grid
    down = _covered(face.top, face.bottom, rows)
    across = _covered(face.left, face.right, columns)
    return torch.outer(down, across)


def beyond_others(faces: Tensor) -> Tensor:
    """For speech that moves the whole picture: all of it but the faces of others, [S, ...]."""
    others = faces.sum(0) - faces
    return torch.maximum(faces, (1 - others).clamp(min=0))


def padded(text: Tensor, tokens: int) -> Tensor:
    """A prompt's embeddings [n, dim] filled up with zeros: [tokens, dim]."""
    return torch.cat([text, text.new_zeros(tokens - len(text), text.shape[1])])


def content(avatar: Avatar) -> bytes:
    """A fingerprint of all that an avatar is, apart from its digest. Milliseconds at full size."""
    seen = blake2b(digest_size=32)
    for part in (avatar.anchor, avatar.text, avatar.listening_text, avatar.clip, *avatar.faces):
        match part:
            case Tensor():
                seen.update(f"{list(part.shape)}".encode())
                # What is computed is computed from these numbers, in whatever format they come.
                seen.update(part.detach().cpu().float().numpy().tobytes())
            case _:
                seen.update(f"{part}".encode())
    return seen.digest()


@dataclass(slots=True)
class _Kept:
    nbytes: int
    content: bytes
    users: int = 0


@dataclass(frozen=True, slots=True)
class ShelfStats:
    """For metrics."""

    hits: int
    misses: int
    evictions: int
    avatars: int
    nbytes: int  # on every rank


class AvatarShelf:
    """Least recently used avatars leave first, those in use never, within a byte budget."""

    def __init__(
        self, *, budget: int, add: Callable[[Avatar], int], drop: Callable[[str], None]
    ) -> None:
        """`add` computes what is kept of an avatar and gives its bytes; `drop` frees it."""
        self._budget, self._add, self._drop = budget, add, drop
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._weights: dict[bool, int] = {}  # bytes of an avatar, by whether it has two prompts
        self._hits = self._misses = self._evictions = 0

    def take(self, avatar: Avatar) -> None:
        """Make sure that `avatar` is there, and keep it until `give_back`.

        Raises:
            BadInput: another avatar is kept under its digest, or it exceeds the budget alone.
            NoCapacity: with those in use it exceeds the budget.
        """
        fingerprint, kept = content(avatar), self._kept.get(avatar.digest)
        if kept is None:
            self._misses += 1
            kept = _Kept(self._make_room(avatar), fingerprint)
            self._kept[avatar.digest] = kept
        elif kept.content != fingerprint:
            expected = "a digest of its own: another avatar is kept under this one"
            raise BadInput("avatar.digest", got=avatar.digest, expected=expected)
        else:
            self._hits += 1
        self._kept.move_to_end(avatar.digest)
        kept.users += 1

    def give_back(self, digest: str) -> None:
        self._kept[digest].users -= 1

    def stats(self) -> ShelfStats:
        return ShelfStats(self._hits, self._misses, self._evictions, len(self._kept), self._nbytes)

    @property
    def _nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept.values())

    def _make_room(self, avatar: Avatar) -> int:
        """Add an avatar and let others go for it, but only if it can stay; its bytes."""
        prompts = avatar.listening_text is not None
        # Those with as many prompts are of one size: all but the first are refused uncomputed.
        if prompts in self._weights:
            self._check(self._weights[prompts])
            self._shrink(self._budget - self._weights[prompts])
            return self._add(avatar)
        nbytes = self._weights[prompts] = self._add(avatar)
        try:
            self._check(nbytes)
        except TalkingMachinesError:
            self._drop(avatar.digest)
            raise
        self._shrink(self._budget - nbytes)
        return nbytes

    def _check(self, nbytes: int) -> None:
        """Whether an avatar of this size can be kept, beside those in use."""
        if nbytes > self._budget:
            expected = f"at most {self._budget} bytes of keys and values"
            raise BadInput("avatar", got=f"{nbytes} bytes", expected=expected)
        if nbytes + sum(kept.nbytes for kept in self._kept.values() if kept.users) > self._budget:
            raise NoCapacity("another avatar", retry_after=10.0)

    def _shrink(self, budget: int) -> None:
        """Let go of the longest unused until the rest fit into `budget`."""
        for digest in [digest for digest, kept in self._kept.items() if kept.users == 0]:
            if self._nbytes <= budget:
                return
            self._drop(digest)
            del self._kept[digest]
            self._evictions += 1


def _covered(start: float, end: float, cells: int) -> Tensor:
    """Which of `cells` equal parts of 0..1 have their middle inside; at least the nearest one."""
    middles = (torch.arange(cells) + 0.5) / cells
    inside = ((middles >= start) & (middles < end)).float()
    if not inside.any():
        inside[min(cells - 1, int((start + end) / 2 * cells))] = 1
    return inside
