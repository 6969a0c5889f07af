"""Where a turn's speech is on the media clock, and how much of it was heard.

Beside the path: chunker → log → **spoken** → converse. Speech goes into chunks without a gap, but
chunks of listening may lie between; so the place of a word is known once its chunk is cut, and
what was heard is counted, not computed from times. Samples are at the stream's rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.chunk import Chunk
from services.gateway.log import SessionLog
from talkingmachines.spec import StreamSpec


@dataclass(frozen=True, slots=True)
class _Piece:
    """Speech that one chunk holds."""

    first: int  # sample of the turn's speech
    place: int  # of that sample on the media clock
    length: int

    @property
    def end(self) -> int:
        return self.first + self.length


class Spoken:
    """The newest turn of one speaker's speech, as the log shows it."""

    def __init__(self, spec: StreamSpec, log: SessionLog) -> None:
        self._spec = spec
        self._log = log
        self._next_chunk = 0
        self._pieces: list[_Piece] = []
        self.turn = 0  # that this is about
        self.complete = False  # whether all speech of the turn is in chunks

    def note(self) -> None:
        """Look at what was cut since; to be called before the log forgets, every few chunks."""
        for entry in self._log.entries:
            chunk = entry.chunk
            if chunk.turn > self.turn:
                self.turn, self._next_chunk = chunk.turn, chunk.chunk
                self._pieces, self.complete = [], False
            if chunk.turn == self.turn and chunk.chunk >= self._next_chunk:
                self._next_chunk = chunk.chunk + 1
                self._add(chunk)

    @property
    def samples(self) -> int:
        """Of the turn's speech that is in chunks."""
        return self._pieces[-1].end if self._pieces else 0

    def heard(self, place: int) -> int:
        """How many samples of the turn's speech lie before a place on the media clock."""
        return sum(min(max(0, place - piece.place), piece.length) for piece in self._pieces)

    def place(self, sample: int) -> int | None:
        """Where a sample of the turn's speech is heard; None while that is not known."""
        for piece in self._pieces:
            if piece.first <= sample < piece.end:
                return piece.place + sample - piece.first
        if self._pieces and sample <= self.samples:
            return self._pieces[-1].place + self._pieces[-1].length
        return None

    def _add(self, chunk: Chunk) -> None:
        end = next((end for end in chunk.ends if end.turn == self.turn), None)
        if chunk.speech:
            length = self._spec.samples_per_chunk if end is None else end.samples
            place = self._spec.first_sample(chunk.chunk)
            self._pieces.append(_Piece(self.samples, place, length))
        self.complete = self.complete or end is not None
