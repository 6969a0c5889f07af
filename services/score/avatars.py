"""Avatars: where their faces lie, and which are kept.

Beside `engine.py`. Keys and values of an avatar's anchor, text and picture are computed once and
shared by its sessions; `AvatarShelf` decides which stay when nobody uses them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from services.score.contract import Avatar, Rectangle
from talkingmachines.errors import BadInput, NoCapacity


def face_mask(face: Rectangle | Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of a face every token shows: [token rows, token columns] float32, 0 to 1."""
    if isinstance(face, Tensor):
        return face.float()
    rows, columns = grid
    down = _covered(face.top, face.bottom, rows)
    across = _covered(face.left, face.right, columns)
    return torch.outer(down, across)


def padded(text: Tensor, tokens: int) -> Tensor:
    """A prompt's embeddings [n, dim] filled up with zeros: [tokens, dim]."""
    return torch.cat([text, text.new_zeros(tokens - len(text), text.shape[1])])


@dataclass(slots=True)
class _Kept:
    nbytes: int
    users: int
    faces: int


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
        self._hits = self._misses = self._evictions = 0

    def take(self, avatar: Avatar) -> None:
        """Make sure that `avatar` is there, and keep it until `give_back`.

        Raises:
            BadInput: another avatar is kept under its digest.
            NoCapacity: with those in use it exceeds the budget.
        """
        if avatar.digest in self._kept:
            faces = self._kept[avatar.digest].faces
            if len(avatar.faces) != faces:
                raise BadInput("avatar.faces", got=len(avatar.faces), expected=f"{faces}, as kept")
            self._hits += 1
        else:
            self._misses += 1
            self._kept[avatar.digest] = _Kept(self._add(avatar), 0, len(avatar.faces))
        self._kept.move_to_end(avatar.digest)
        self._kept[avatar.digest].users += 1
        self._shrink()
        if self._nbytes > self._budget:
            self.give_back(avatar.digest)
            raise NoCapacity("another avatar", retry_after=10.0)

    def give_back(self, digest: str) -> None:
        self._kept[digest].users -= 1
        self._shrink()

    def stats(self) -> ShelfStats:
        return ShelfStats(self._hits, self._misses, self._evictions, len(self._kept), self._nbytes)

    @property
    def _nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept.values())

    def _shrink(self) -> None:
        for digest in [digest for digest, kept in self._kept.items() if kept.users == 0]:
            if self._nbytes <= self._budget:
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
