"""Batches: frozen dataclasses of tensors, nested or not, whose first dimension counts rows.

Under `footage.py` and `latents.py`; also how rows are kept on disk and which of an endless series a
step may draw.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

T = TypeVar("T")


def mapped(fn: Callable[..., Tensor], *batches: T) -> T:
    """The batch of `fn` of each tensor, or of the tensors at the same place in several batches."""
    first: Any = batches[0]
    if isinstance(first, Tensor):
        return cast(T, fn(*batches))
    parts = {f.name: mapped(fn, *(getattr(b, f.name) for b in batches)) for f in fields(first)}
    return cast(T, type(first)(**parts))


def picked(batch: T, rows: Tensor | slice) -> T:
    """Some rows, in the order asked for."""

    def pick(x: Tensor) -> Tensor:
        return x[rows if isinstance(rows, slice) else rows.to(x.device)]

    return mapped(pick, batch)


def joined(batches: Sequence[T]) -> T:
    return mapped(lambda *parts: torch.cat(parts), *batches)


def put(batch: T, row: int, other: T) -> None:
    """Overwrite the rows from `row` on by those of `other`."""

    def write(old: Tensor, new: Tensor) -> Tensor:
        old[row : row + len(new)] = new
        return old

    mapped(write, batch, other)


def packed(batch: object, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor by its path, as `truth.lips.upper_in`."""
    return dict(_leaves(batch, prefix))


def unpacked(kind: type[T], tensors: Mapping[str, Tensor], prefix: str = "") -> T:
    """Inverse of `packed`."""
    if kind is Tensor:
        return cast(T, tensors[prefix])
    types = get_type_hints(kind)
    path = f"{prefix}." if prefix else ""
    return kind(**{name: unpacked(types[name], tensors, path + name) for name in types})


class Shelf(Generic[T]):
    """Numbered rows kept on disk, one file each; what is not there yet is made and put there.

    Where making a row costs more than learning from it, it is made once.
    """

    def __init__(self, kind: type[T], make: Callable[[Sequence[int]], T], directory: Path) -> None:
        self._kind, self._make, self._directory = kind, make, directory
        directory.mkdir(parents=True, exist_ok=True)

    def make(self, numbers: Sequence[int]) -> T:
        return joined([self._one(number) for number in numbers])

    def fill(self, numbers: Sequence[int]) -> None:
        """Make those of the rows that are not there, together."""
        missing = [number for number in numbers if not self._path(number).exists()]
        if missing:
            made = self._make(missing)
            for place, number in enumerate(missing):
                self._keep(number, picked(made, slice(place, place + 1)))

    def _one(self, number: int) -> T:
        if self._path(number).exists():
            return unpacked(self._kind, load_file(self._path(number)))
        row = self._make([number])
        self._keep(number, row)
        return row

    def _keep(self, number: int, row: T) -> None:
        # Whoever else makes this row at the same time writes the same.
        unfinished = self._path(number).with_suffix(f".{os.getpid()}")
        save_file({name: x.cpu().contiguous() for name, x in packed(row).items()}, unfinished)
        unfinished.replace(self._path(number))

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}.safetensors"


@dataclass(frozen=True, slots=True)
class Keep:
    """Where made rows are kept, and how many different ones."""

    directory: Path
    rows: int

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--shelf", type=Path, help="keep clips here: on CPUs drawing costs more than learning")
        add("--shelf-clips", type=int, default=900, help="different clips (%(default)s)")

    @staticmethod
    def asked(asked: argparse.Namespace) -> Keep | None:
        return None if asked.shelf is None else Keep(asked.shelf, asked.shelf_clips)

    def of(self, what: str) -> Keep:
        """A place of its own for one kind of row."""
        return replace(self, directory=self.directory / what)

    def shelf(self, kind: type[T], make: Callable[[Sequence[int]], T]) -> Shelf[T]:
        return Shelf(kind, make, self.directory)

    def made(
        self, kind: type[T], make: Callable[[Sequence[int]], T]
    ) -> Callable[[Sequence[int]], T]:
        """`make` for an endless series that begins anew after `rows` rows, each made once."""
        shelf = self.shelf(kind, make)
        return lambda numbers: shelf.make([number % self.rows for number in numbers])


class Pool(Generic[T]):
    """The newest `size` rows of an endless numbered series, from which steps draw.

    After every `period` steps `block` rows are replaced. What a pool holds at a step is a function
    of the step alone, so a resumed run finds what it left.
    """

    def __init__(
        self, make: Callable[[Sequence[int]], T], *, size: int, block: int, period: int
    ) -> None:
        assert size % block == 0, "blocks must not wrap around"
        self._make, self._size, self._block, self._period = make, size, block, period
        self._made = 0  # rows of the series that were made so far
        self._rows: T | None = None

    def at(self, step: int) -> T:
        """All rows of the pool as they are at `step`, which never falls."""
        newest = self._size + step // self._period * self._block
        if self._rows is None:
            self._rows = joined([self._make(part) for part in self._first(newest)])
            self._made = newest
        while self._made < newest:
            fresh = range(self._made, self._made + self._block)
            put(self._rows, self._made % self._size, self._make(fresh))
            self._made += self._block
        return self._rows

    def batch(self, step: int, rows: int, generator: torch.Generator) -> T:
        """`rows` rows of the pool at `step`, drawn at random."""
        return picked(self.at(step), torch.randint(self._size, (rows,), generator=generator))

    def _first(self, newest: int) -> Iterator[list[int]]:
        """The numbers below `newest` that belong into the pool, in order of place, by block."""
        for begin in range(0, self._size, self._block):
            yield [_latest(begin + i, newest, self._size) for i in range(self._block)]


def _latest(place: int, newest: int, size: int) -> int:
    """The highest number below `newest` that belongs to `place`."""
    return place + (newest - 1 - place) // size * size


def _leaves(batch: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield path, batch
        return
    for f in fields(batch):
        yield from _leaves(getattr(batch, f.name), f"{path}.{f.name}" if path else f.name)
