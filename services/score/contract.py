"""What goes into the engine and what comes out, in memory.

The servicer translates these to and from the wire; `engine.py` alone consumes them. Everything that
a session is follows from an avatar, a seed and a `LogTail`, so a session can go on anywhere.

Legend: C latent channels, F latent frames of a chunk, h and w rows and columns of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from talkingmachines.errors import EngineFailure, TalkingMachinesError

Pcm16 = NDArray[np.int16]


class Mode(Enum):
    """What a speaker does during a chunk."""

    SPEAKING = auto()
    LISTENING = auto()


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A face, in parts of the picture: 0 is left or top, 1 is right or bottom."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True, eq=False)
class Avatar:
    """A character, as the model knows it.

    Speaker n of a chunk moves face n. A model without text or CLIP takes None; without a prompt for
    listening, the prompt for speaking serves both.
    """

    digest: str  # of all the rest; the same digest is the same avatar
    anchor: Tensor  # [C, 1, h, w] clean latent of the reference picture
    faces: tuple[Rectangle | Tensor, ...] = ()  # or masks [token rows, token columns], 0 to 1
    text: Tensor | None = None  # [at most `text.tokens`, text.dim]
    listening_text: Tensor | None = None
    clip: Tensor | None = None  # [clip.tokens, clip.dim]


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """One speaker during one chunk."""

    mode: Mode
    pcm: Pcm16  # the chunk's samples, then the look-ahead's; what a listener says is not heard


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A chunk to be drawn."""

    turn: int
    chunk: int  # its number in the stream, from 0
    speech: tuple[Speech, ...]  # per face
    slack: float  # seconds from now until its latents are needed


@dataclass(frozen=True, slots=True, eq=False)
class PastChunk:
    """A finished chunk, as the log has it."""

    chunk: int
    speech: tuple[Speech, ...]  # exactly as it was sent
    latents: Tensor | None = None  # [C, F, h, w]; needed for the last `replay` chunks


@dataclass(frozen=True, slots=True, eq=False)
class LogTail:
    """The last chunks of a session, oldest first, without gaps; empty for a new one.

    `Engine.tail` says how many the engine asks for; a session that has fewer sends all it has.
    """

    chunks: tuple[PastChunk, ...] = ()

    @property
    def next_chunk(self) -> int:
        """Number of the chunk that comes after the tail."""
        return self.chunks[-1].chunk + 1 if self.chunks else 0


@dataclass(frozen=True, slots=True)
class TailSize:
    """How much of its log a session must show to go on."""

    speech: int  # chunks with speech
    latents: int  # chunks, of these the last, with latents


class RankLost(EngineFailure):
    """A device that draws with this one is gone; every session here has ended."""


class NotANumber(EngineFailure):
    """A chunk's latents are not all numbers."""


class OutOfMemory(EngineFailure):
    """The device had no room for a step."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A chunk's latents, in host memory."""

    session: str
    turn: int
    chunk: int
    latents: Tensor  # [C, F, h, w]
    late: float  # seconds after its deadline; negative when in time


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """A session that cannot go on here. Others are not touched."""

    session: str
    error: TalkingMachinesError
