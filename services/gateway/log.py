"""The session as an append-only log: what was said, and what was drawn for it.

On the path: chunker → **log** → score → **log** → vae. Replicas hold caches over this log and may
lose them at any time; `tail` is all that a new one needs. Only what a rewind or a new attachment
can ask for is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace

from services.gateway.chunk import Chunk, Rewind, SpeechPosition
from talkingmachines.media import Latents, LogTail, PastChunk, SpeakerSpeech
from talkingmachines.spec import StreamSpec


@dataclass(slots=True)
class Entry:
    """One chunk, and its latents once they are known."""

    chunk: Chunk
    latents: Latents | None = None


@dataclass(frozen=True, slots=True)
class TailLength:
    """How much of the log before a chunk a replica needs to go on with that chunk."""

    latents: int  # chunks with latents
    speech: int = 0  # chunks with speech


class SessionLog:
    """The newest part of one session's log.

    Args:
        spec: the stream's geometry.
        entries: of a resumed session, without a gap.
    """

    def __init__(self, spec: StreamSpec, entries: Iterable[Entry] = ()) -> None:
        self._spec = spec
        self._entries = deque(entries)

    @property
    def next_chunk(self) -> int:
        """One past the newest chunk that was cut."""
        return self._entries[-1].chunk.chunk + 1 if self._entries else 0

    @property
    def next_undrawn(self) -> int:
        """The first chunk whose latents are not known."""
        for entry in reversed(self._entries):
            if entry.latents is not None:
                return entry.chunk.chunk + 1
        return self._first

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    @property
    def bytes(self) -> int:
        """Memory held by latents and speech."""
        return sum(_size(entry) for entry in self._entries)

    def append(self, chunk: Chunk) -> None:
        """Write down what is to be drawn next."""
        assert not self._entries or chunk.chunk == self.next_chunk
        self._entries.append(Entry(chunk))

    def answer(self, latents: Latents) -> bool:
        """Write down what was drawn; False when it is void or known already: the first counts."""
        entry = self.entry(latents.chunk)
        if entry is None or entry.latents is not None or entry.chunk.turn != latents.turn:
            return False
        entry.latents = latents
        return True

    def entry(self, chunk: int) -> Entry | None:
        """The entry of a chunk that is kept."""
        index = chunk - self._entries[0].chunk.chunk if self._entries else -1
        return self._entries[index] if 0 <= index < len(self._entries) else None

    async def recorded(
        self, answers: AsyncIterator[Latents | Rewind]
    ) -> AsyncIterator[Latents | Rewind]:
        """Answers as the log knows them: new ones, and after a rewind those still to be shown."""
        async for answer in answers:
            if isinstance(answer, Rewind):
                yield answer
                for latents in self.drawn(answer.decode_from, answer.next_chunk):
                    yield replace(latents, turn=answer.turn)
            elif self.answer(answer):
                yield answer

    def drawn(self, first: int, end: int) -> list[Latents]:
        """The latents of chunks `first` to `end`, as far as they are known without a gap."""
        found = []
        for chunk in range(first, end):
            entry = self.entry(chunk)
            if entry is None or entry.latents is None:
                break
            found.append(entry.latents)
        return found

    def tail(self, next_chunk: int, length: TailLength) -> LogTail | None:
        """What a replica must know to go on with `next_chunk`; None at a session's start."""
        if next_chunk == 0:
            return None
        with_latents = max(next_chunk - length.latents, self._first)
        with_speech = max(next_chunk - length.speech, self._first)
        return LogTail(
            next_chunk,
            tuple(
                self._past(chunk, latents=chunk >= with_latents, speech=chunk >= with_speech)
                for chunk in range(min(with_latents, with_speech), next_chunk)
            ),
        )

    def rewind(
        self,
        turn: int,
        next_chunk: int,
        *,
        silent_from: int,
        positions: tuple[SpeechPosition, ...] = (),
    ) -> None:
        """Void what was not played: chunks from `next_chunk`, speech from sample `silent_from`.

        Speech goes on at `positions`: what waited was forgotten.
        """
        while self._entries and self.next_chunk > next_chunk:
            self._entries.pop()
        if self._entries:
            last = self._entries[-1].chunk
            speech = tuple(_silenced(part, silent_from) for part in last.speech)
            ends = tuple(end for end in last.ends if end.turn < turn - 1)
            self._entries[-1].chunk = replace(last, speech=speech, ends=ends, positions=positions)

    def trim(self, first: int) -> None:
        """Forget the chunks before `first`."""
        while len(self._entries) > 1 and self._first < first:
            self._entries.popleft()

    @property
    def _first(self) -> int:
        return self._entries[0].chunk.chunk if self._entries else 0

    def _past(self, chunk: int, *, latents: bool, speech: bool) -> PastChunk:
        entry = self.entry(chunk)
        assert entry is not None, "a tail reaches only what is kept"
        assert entry.latents is not None, "a tail reaches only what is drawn"
        return PastChunk(
            chunk,
            latents=entry.latents if latents else None,
            speech=entry.chunk.speech if speech else (),
        )


def _silenced(part: SpeakerSpeech, sample: int) -> SpeakerSpeech:
    speech = part.speech
    kept = speech.part(0, max(0, sample - speech.first_sample)).samples
    return replace(
        part,
        speech=replace(speech, samples=kept.ljust(len(speech.samples), b"\0")),
        lookahead=replace(part.lookahead, samples=b""),
    )


def _size(entry: Entry) -> int:
    speech = sum(len(part.speech.samples) for part in entry.chunk.speech)
    return speech + (len(entry.latents.tensor.payload) if entry.latents else 0)
