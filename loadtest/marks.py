"""Marks by which callers know their own sound and picture again, and notice anybody else's.

Sound: a recording with noise of the call's own in its lowest bits. The fleet gives a character's
speech back bit for bit, so every piece that is not silence must be found in what was said.
Picture: every caller has a character of its own among those that call; a frame must look more like
that one's portrait than like any other's. CONVERSE: the character's greeting names the caller.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from talkingmachines.errors import BadInput
from talkingmachines.media import Pcm
from talkingmachines.picture import Codec, EncodedPicture, VideoFrame
from talkingmachines.speech import read_file

_NOISE = 4  # of 32,768: 80 dB below a shout, and no two calls have 16 samples in common
_GAP = 16  # zeros in a row are silence and not part of a voice with such noise
_LEAST = 16  # samples that are enough to tell whose they are
_REMEMBERED_SECONDS = 120.0  # of what was said, for what comes back
_GRID = 8  # a picture is compared as so many by so many colours


class Voice:
    """What one caller says: recordings one after the other, for ever, with a mark of their own.

    Args:
        recordings: at any rates.
        sample_rate: Hz, the stream's own: at others the fleet would have to resample.
        seed: of the mark.
    """

    def __init__(self, recordings: Sequence[Pcm], sample_rate: int, seed: int) -> None:
        self.sample_rate = sample_rate
        first = random.Random(seed).randrange(len(recordings))
        self._recordings = cycle([*recordings[first:], *recordings[:first]])
        self._noise = np.random.default_rng(seed)
        self._left = np.zeros(0, np.int16)

    def take(self, samples: int) -> Pcm:
        """The next so many samples."""
        while len(self._left) < samples:
            more = _resampled(next(self._recordings), self.sample_rate)
            self._left = np.concatenate([self._left, more])
        part, self._left = self._left[:samples], self._left[samples:]
        noise = self._noise.integers(-_NOISE, _NOISE + 1, samples)
        marked = np.clip(part.astype(np.int32) + noise, -32_768, 32_767).astype("<i2")
        return Pcm(marked.tobytes(), self.sample_rate)


def recordings(folder: Path) -> list[Pcm]:
    """The sound files of a folder.

    Raises:
        BadInput: there is none, or one is no sound.
    """
    files = sorted(folder.glob("*.wav"))
    if not files:
        raise BadInput("speech", got=folder, expected="a folder with WAV files")
    return [read_file(file) for file in files]


class Ear:
    """Whether sound that comes back is what this caller said."""

    def __init__(self) -> None:
        self._said = bytearray()
        self._forgotten = 0
        self._cursor = 0  # in bytes since the beginning
        self.heard = 0  # pieces
        self.foreign = 0  # of these

    @property
    def spoken(self) -> int:
        """Samples that were said so far."""
        return (self._forgotten + len(self._said)) // 2

    def said(self, pcm: Pcm) -> None:
        self._said += pcm.samples
        limit = 2 * round(_REMEMBERED_SECONDS * pcm.sample_rate)
        if len(self._said) > 2 * limit:
            gone = len(self._said) - limit
            del self._said[:gone]
            self._forgotten += gone

    def hears(self, pcm: Pcm) -> int | None:
        """Take a piece that came.

        Returns:
            One past the last sample of what was said that is in it; None where there is no voice.
        """
        heard = None
        for part in voiced(np.frombuffer(pcm.samples, "<i2")):
            self.heard += 1
            found = self._find(part.tobytes())
            self.foreign += found is None
            heard = heard if found is None else found
        return heard

    def _find(self, part: bytes) -> int | None:
        for start in (max(0, self._cursor - self._forgotten), 0):
            found = self._said.find(part, start)
            if found >= 0:
                self._cursor = self._forgotten + found + len(part)
                return self._cursor // 2
        return None


def voiced(samples: NDArray[np.int16]) -> list[NDArray[np.int16]]:
    """The stretches without silence that are long enough to be known again."""
    sounding = np.flatnonzero(samples)
    if not len(sounding):
        return []
    breaks = np.flatnonzero(np.diff(sounding) > _GAP)
    starts = [sounding[0], *sounding[breaks + 1]]
    ends = [*sounding[breaks], sounding[-1]]
    return [
        samples[start : end + 1]
        for start, end in zip(starts, ends, strict=True)
        if end + 1 - start >= _LEAST
    ]


@dataclass(frozen=True, slots=True)
class Face:
    """What a character looks like from afar."""

    avatar_id: str
    colours: NDArray[np.float32]  # [grid, grid, 3]

    @classmethod
    def of(cls, avatar_id: str, portrait: bytes) -> Face:
        """By its portrait, an image file."""
        with av.open(io.BytesIO(portrait), "r") as file:
            return cls(avatar_id, _colours(next(file.decode(video=0))))


class Eye:
    """Whether pictures show the character that was called."""

    def __init__(self, mine: Face, others: Sequence[Face]) -> None:
        self._mine = mine
        self._others = [face for face in others if face.avatar_id != mine.avatar_id]
        self._jpeg = av.CodecContext.create("mjpeg", "r")
        self.seen = 0
        self.foreign = 0

    def sees(self, frame: VideoFrame) -> None:
        """Look at one frame, a JPEG."""
        picture = frame.picture
        assert isinstance(picture, EncodedPicture)
        assert picture.codec is Codec.JPEG
        (decoded,) = self._jpeg.decode(av.Packet(picture.payload))
        assert isinstance(decoded, av.VideoFrame)
        colours = _colours(decoded)
        self.seen += 1
        nearest = min((_far(colours, face) for face in self._others), default=np.inf)
        self.foreign += bool(nearest < _far(colours, self._mine))


def _far(colours: NDArray[np.float32], face: Face) -> float:
    return float(np.abs(colours - face.colours).mean())


def _colours(frame: av.VideoFrame) -> NDArray[np.float32]:
    """Mean colours of the squares of a grid, [grid, grid, 3]."""
    side = min(frame.width, frame.height)
    pixels = frame.to_ndarray(format="rgb24").astype(np.float32)
    top, left = (frame.height - side) // 2, (frame.width - side) // 2
    square = pixels[top : top + side, left : left + side]
    edges = np.linspace(0, side, _GRID + 1).astype(int)[:-1]
    rows = np.add.reduceat(square, edges, axis=0)
    cells = np.add.reduceat(rows, edges, axis=1)
    sizes = np.diff([*edges, side])
    return np.asarray(cells / (sizes[:, None, None] * sizes[None, :, None]), np.float32)


def greeting(number: int) -> str:
    """What the character says first to a caller, and to nobody else."""
    return f"Welcome, caller number {number}."


_GREETED = re.compile(r"caller number (\d+)")


def greeted(text: str) -> list[int]:
    """Whom a transcript's text calls by number."""
    return [int(number) for number in _GREETED.findall(text)]


def _resampled(pcm: Pcm, sample_rate: int) -> NDArray[np.int16]:
    """At another rate, by straight lines: good enough to speak with."""
    given: NDArray[np.int16] = pcm.array()
    if pcm.sample_rate == sample_rate:
        return given
    samples = round(len(given) * sample_rate / pcm.sample_rate)
    places = np.arange(samples) * (pcm.sample_rate / sample_rate)
    between = np.interp(places, np.arange(len(given)), given)
    return np.asarray(between, np.int16)
