"""The corpus on disk: for each voice a pack of sound and an index that grow together.

    DIR/NAME.ogg     Ogg Opus files end to end (any player plays the whole of it), 9 MB per hour
    DIR/NAME.jsonl   one row per utterance: where in the pack, what, how, when each phone

A row is written after its sound, so whatever ended a run leaves at most sound without a row behind,
which the next run cuts off. Mouth controls are not stored: they follow from sound and phones.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from training.data.speech.audio import RATE, Pcm
from training.data.speech.compressed import decoded, opus_file
from training.data.speech.phones import PhoneTrack, parsed
from training.data.speech.split import Split


@dataclass(frozen=True, slots=True)
class Utterance:
    voice: str
    engine: str
    split: Split
    line: str  # name of the line in the script
    text: str
    seed: int  # that its pace was drawn with
    pace: float
    offset: int  # bytes into the pack
    size: int  # bytes
    samples: int  # at 16 kHz
    phones: str  # as `phones.written`

    @property
    def seconds(self) -> float:
        return self.samples / RATE

    @property
    def track(self) -> PhoneTrack:
        return parsed(self.phones)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A line that a voice could not say or that did not align: not tried again."""

    line: str
    dropped: str  # why


Row = Utterance | Dropped


class VoicePack:
    """One voice's pack and index, open for adding by one process: see `only_writer`."""

    def __init__(self, folder: Path, voice: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._pack = folder / f"{voice}.ogg"
        self._index = folder / f"{voice}.jsonl"
        self.rows = list(_rows(self._index))
        self._size = max((row.offset + row.size for row in self.utterances()), default=0)
        self._pack.touch()
        with self._pack.open("r+b") as file:
            file.truncate(self._size)
        # A row cut short by a crash would spoil the next one.
        self._index.write_text("".join(_line(row) for row in self.rows), "utf-8")

    def utterances(self) -> Iterator[Utterance]:
        return (row for row in self.rows if isinstance(row, Utterance))

    def add(self, utterance: Utterance, pcm: Pcm) -> None:
        """Append sound and row; offset, size and samples of `utterance` are filled in."""
        file = opus_file(pcm)
        with self._pack.open("ab") as pack:
            pack.write(file)
        fields = asdict(utterance)
        fields |= {"offset": self._size, "size": len(file), "samples": len(pcm)}
        self._size += len(file)
        self._append(Utterance(**fields))

    def drop(self, line: str, why: str) -> None:
        self._append(Dropped(line, why))

    def _append(self, row: Row) -> None:
        self.rows.append(row)
        with self._index.open("a", encoding="utf-8") as index:
            index.write(_line(row))


class BeingWritten(RuntimeError):
    """Another process adds to this voice."""


@contextmanager
def only_writer(folder: Path, voice: str) -> Iterator[None]:
    """Hold the right to add to a voice; it falls back when the process ends, however it ends.

    Raises:
        BeingWritten: another holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{voice}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BeingWritten(f"another process adds to {voice} in {folder}") from None
        yield


class Corpus:
    """A finished corpus, or one that still grows, read as it stood when it was opened."""

    def __init__(self, folder: Path, utterances: list[Utterance]) -> None:
        self._folder = folder
        self.utterances = utterances

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Every voice found in `folder`, by name.

        Raises:
            FileNotFoundError: no index is there.
        """
        indexes = sorted(folder.glob("*.jsonl"))
        if not indexes:
            raise FileNotFoundError(f"no speech corpus in {folder}: python -m training.data.speech")
        rows = (row for index in indexes for row in _rows(index))
        return cls(folder, [row for row in rows if isinstance(row, Utterance)])

    def sound(self, utterance: Utterance) -> Pcm:
        """The utterance as it was recorded, less what 20 kbit/s cost; no delay."""
        with (self._folder / f"{utterance.voice}.ogg").open("rb") as pack:
            pack.seek(utterance.offset)
            return decoded(pack.read(utterance.size), utterance.samples)


def _rows(index: Path) -> Iterator[Row]:
    """The whole rows of an index; a last one that was cut short is left out."""
    if not index.exists():
        return
    for line in index.read_text("utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        fields = json.loads(line)
        if "dropped" in fields:
            yield Dropped(**fields)
        else:
            yield Utterance(**{**fields, "split": Split(fields["split"])})


def _line(row: Row) -> str:
    return json.dumps(asdict(row)) + "\n"
