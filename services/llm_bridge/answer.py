"""One answer as it is made, sent and heard: its speech, its words, its turns.

Beside the path: conversation → **answer**. Places are samples of the answer's speech. An answer
that goes on after a false interruption does so under a new turn: `base` is where that one begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_BACK_SECONDS = 0.15  # said again when an answer goes on, so that no word is torn


@dataclass(frozen=True, slots=True)
class Words:
    """What was said between two places; equal places mean that only their order is known."""

    text: str
    start: int
    end: int


@dataclass(slots=True)
class AnswerSpeech:
    """One answer's speech, from the first sample made to the last one heard."""

    number: int  # the answer's, as the model knows it
    rate: int  # of its speech, Hz
    turn: int | None = None  # under which it is sent; None while nothing is
    base: int = 0  # place at which that turn begins
    sent: int = 0
    heard: int = 0
    made: bool = False  # whether all of it is here
    ended: bool = False  # whether the gateway knows that all of the turn was sent
    told: int = 0  # words that were told to the client
    words: list[Words] = field(default_factory=list)
    speech: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def samples(self) -> int:
        return len(self.speech) // 2

    @property
    def finished(self) -> bool:
        """Whether all of it was heard."""
        return self.made and self.heard >= self.samples

    def take(self, most: int) -> bytes:
        """The next samples to be sent, at most so many."""
        start = self.sent
        self.sent = min(self.samples, start + most)
        return bytes(self.speech[2 * start : 2 * self.sent])

    def untold(self) -> list[Words]:
        """Words whose speech was sent, or that have none of their own, not told before."""
        new = []
        while self.told < len(self.words):
            words = self.words[self.told]
            if words.start != words.end and words.start >= self.sent:
                break
            new.append(words)
            self.told += 1
        return new

    def note_heard(self, turn_samples: int) -> None:
        """The gateway says how much of the turn was heard."""
        self.heard = max(self.heard, min(self.base + turn_samples, self.sent))

    def rewind(self) -> None:
        """Begin again, in a turn to come, with what was not heard."""
        self.base = self.sent = max(0, self.heard - round(_BACK_SECONDS * self.rate))
        self.turn = None
        self.ended = False
        self.told = sum(words.end <= self.sent for words in self.words if words.start != words.end)

    @property
    def text(self) -> str:
        """All words since the turn began."""
        return "".join(words.text for words in self._of_turn()).strip()

    def heard_text(self, since: int = 0) -> str:
        """The words that were heard since a place; a torn one counts when most of it was heard."""
        return heard_text(self._timed(), self.heard, since=since)

    def _of_turn(self) -> list[Words]:
        return [words for words in self.words if words.start == words.end or words.end > self.base]

    def _timed(self) -> list[Words]:
        """Words with places: where the model did not say, spread evenly over all the speech."""
        if all(words.start != words.end for words in self.words):
            return self.words
        return [Words("".join(words.text for words in self.words), 0, self.samples)]


def heard_text(words: Iterable[Words], until: int, *, since: int = 0) -> str:
    """What of `words`, all with places, was heard between two places."""
    return "".join(_part(word, since, until) for word in words if word.end > since).strip()


def _part(words: Words, start: int, end: int) -> str:
    """The share of `words` between two places: those whose middle lies there."""
    if words.start >= start and words.end <= end:
        return words.text
    samples = (words.end - words.start) / max(1, len(words.text))  # of a character, about
    kept = [
        word[0]
        for word in re.finditer(r"\S+\s*", words.text)
        if start <= words.start + samples * (word.start() + word.end()) / 2 <= end
    ]
    return "".join(kept)
