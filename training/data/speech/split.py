"""What may be trained on and what may only be tested on, as a type.

A voice has a split and a line has a split; an utterance may be trained on only if both may. Sets
of utterances carry the split in their type (`SpeechSet[Train]`), so that a training loop cannot
be handed test speech: the type checker refuses the call, and the set refuses the record.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeVar


class Split(StrEnum):
    TRAIN = "train"
    TEST = "test"  # also: whatever its licence or its lineage allows no other use of

    def joined(self, other: Split) -> Split:
        """The split of what is made of both: one part for testing makes the whole so."""
        return Split.TRAIN if self is other is Split.TRAIN else Split.TEST


class Train:
    split: Final = Split.TRAIN


class Test:
    __test__: Final = False  # not a test case
    split: Final = Split.TEST


Use = TypeVar("Use", Train, Test)
