"""What the voices read: our own sentences, in two sets that never mix.

Every word is in CMUdict, so that the aligner never drops a line; numbers are spelled out.
First station of the speech corpus: **script** → voices → align → mouth → corpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from training.data.speech.split import Split

_SENTENCES = Path(__file__).parent / "sentences"


@dataclass(frozen=True, slots=True)
class Line:
    name: str  # stable: indexes of corpora refer to it
    text: str
    split: Split


def read_script(split: Split) -> list[Line]:
    """All lines of one set, in the order of the file."""
    match split:
        case Split.TRAIN:
            return _read("train.txt", "t", split)
        case Split.TEST:
            return _read("held_out.txt", "h", split)


def words(text: str) -> list[str]:
    """The words of a line as the pronouncing dictionary spells them: lower case, no marks."""
    return re.findall(r"[a-z']+", text.lower())


def _read(file: str, prefix: str, split: Split) -> list[Line]:
    rows = (_SENTENCES / file).read_text("utf-8").splitlines()
    texts = [row.strip() for row in rows if row.strip() and not row.startswith("#")]
    return [Line(f"{prefix}{number:03d}", text, split) for number, text in enumerate(texts)]
