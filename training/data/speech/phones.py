"""Timed phones: what the aligner finds and the mouth is shaped from.

ARPAbet without stress, as in CMUdict, and silence. Times are whole frames of 10 ms, the aligner's
grid.
"""

from __future__ import annotations

from dataclasses import dataclass

FRAMES_PER_SECOND = 100
SILENCE = "SIL"

VOWELS = frozenset({
    "AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW",
})  # fmt: skip
CONSONANTS = frozenset({
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH",
    "T", "TH", "V", "W", "Y", "Z", "ZH",
})  # fmt: skip
PHONES = VOWELS | CONSONANTS | {SILENCE}


@dataclass(frozen=True, slots=True)
class Phone:
    name: str  # one of PHONES
    frames: int  # duration, at least 1

    def __post_init__(self) -> None:
        if self.name not in PHONES:
            raise ValueError(f"{self.name!r} is no ARPAbet phone")
        if self.frames < 1:
            raise ValueError(f"{self.name} lasts {self.frames} frames")


PhoneTrack = tuple[Phone, ...]  # one after the other, from frame 0


def length(track: PhoneTrack) -> int:
    """Frames in all."""
    return sum(phone.frames for phone in track)


def written(track: PhoneTrack) -> str:
    """One line of text: `SIL 12 HH 5 AH 7`."""
    return " ".join(f"{phone.name} {phone.frames}" for phone in track)


def parsed(line: str) -> PhoneTrack:
    """Inverse of `written`.

    Raises:
        ValueError: an unknown phone or a duration that is no positive number.
    """
    fields = line.split()
    return tuple(
        Phone(name, int(frames)) for name, frames in zip(fields[::2], fields[1::2], strict=True)
    )
