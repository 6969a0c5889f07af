"""An answer cut into pieces that are spoken one by one, as soon as each is written.

On the path: writer → **clauses** → voice. The first piece is short, so that the first sound does
not wait for the last word; later ones are whole sentences, which sound better.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

_SENTENCE = re.compile(r"(?<!\b[A-Z])(?<!\b[DM]r)(?<!\bMrs)(?<!\bSt)[.!?…]+[\"')\]]*(?=\s)|\n+")
_CLAUSE = re.compile(r"[,;:—](?=\s)")
_FIRST_CLAUSE = 10  # characters of the first piece, at least
_LATER = 18  # of the others: shorter ones are spoken with what follows
_LONGEST = 240  # characters without any mark
# What chat models write and nobody says.
_UNSPOKEN = re.compile(r"[*_`#~]+|\[[^\]]*\]\([^)]*\)|https?://\S+|<[^>]{0,80}>")


async def clauses(pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    """Pieces fit to be spoken; together they are all the words of `pieces`."""
    waiting, first = "", True
    async for piece in pieces:
        waiting += piece
        while (end := _end(waiting, first=first)) is not None:
            spoken, waiting = waiting[:end], waiting[end:]
            if said := _fit(spoken):
                first = False
                yield said
    if said := _fit(waiting):
        yield said


def _end(text: str, *, first: bool) -> int | None:
    """Where the next piece ends, once that is sure."""
    least = _FIRST_CLAUSE if first else _LATER
    ends = [match.end() for match in _SENTENCE.finditer(text) if match.end() >= least]
    if first:
        ends += [match.end() for match in _CLAUSE.finditer(text) if match.end() >= least]
    if ends:
        return min(ends)
    if len(text) > _LONGEST:
        return text.rfind(" ", 0, _LONGEST) + 1 or _LONGEST
    return None


def _fit(text: str) -> str:
    return " ".join(_UNSPOKEN.sub("", text).split())
