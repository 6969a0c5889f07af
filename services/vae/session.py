"""What the engine knows of one stream: its decoder state, what waits, and what comes next.

A session is a cache over the caller's log: it can be rebuilt from the anchor and the last latents
anywhere, at any time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from torch import Tensor

from services.accelerator.copies import PendingCopy
from services.vae.pixels import Pixels
from services.vae.state import State
from talkingmachines.errors import BadInput, EngineFailure
from talkingmachines.spec import StreamSpec

# Normalised latents are about 1. What is larger than this is no picture, and would overflow on
# its way through the decoder in one number format or another: the caller's fault, not ours.
_LARGEST = 10_000.0


@dataclass(frozen=True, slots=True)
class Opening:
    """How a stream is taken up, at its beginning or anywhere within it."""

    spec: StreamSpec
    pixels: Pixels
    anchor: Tensor  # [Z, 1, h, w], the latent of the reference picture
    tail: Tensor  # [Z, K, h, w], the latest latents before `next_chunk`; K = 0 at the beginning
    next_chunk: int  # the number of the chunk that will be submitted first
    deadline: float  # seconds on the engine's clock, when the state should be ready


@dataclass(frozen=True, slots=True)
class Chunk:
    number: int
    latents: Tensor  # [Z, latents_per_chunk, h, w]
    deadline: float  # seconds on the engine's clock, when the next of its frames should be ready
    decoded: int = 0  # of its latents

    @property
    def next_latent(self) -> Tensor:
        """[Z, 1, h, w]"""
        return self.latents[:, self.decoded : self.decoded + 1]

    @property
    def last(self) -> bool:
        """Whether its next latent is its last."""
        return self.decoded + 1 == self.latents.shape[1]

    def after(self, spec: StreamSpec) -> Chunk:
        """What is left when the next latent is decoded: due as much later as it lasts."""
        due = self.deadline + spec.frames_per_latent / spec.fps
        return replace(self, deadline=due, decoded=self.decoded + 1)


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Make the state anew from the anchor and a tail of the log, one piece at a time."""

    pieces: Iterator[State | None]  # as `Runner.rebuild` gives them
    deadline: float


Work = Chunk | Rebuild


@dataclass(slots=True)
class Spent:
    """On the chunk that is being decoded."""

    seconds: float = 0.0  # that its passes took
    share: float = 0.0  # of that, what fell to this session
    late: bool = False  # whether frames were ready only after they were due


@dataclass(slots=True)
class Session:
    name: str
    spec: StreamSpec
    pixels: Pixels
    anchor: Tensor
    next_chunk: int
    rewinds: int = 0
    state: State = field(default_factory=State)
    spent: Spent = field(default_factory=Spent)
    queue: deque[Work] = field(default_factory=deque)

    @property
    def deadline(self) -> float:
        """When the most urgent of what waits is due."""
        return min(work.deadline for work in self.queue)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The frames of one latent, in host memory."""

    session: str
    rewinds: int  # of the session, before this was asked for; numbers come again after one
    chunk: int
    first_frame: int  # on the media clock, which counts from chunk 0
    frames: Tensor  # uint8, laid out as the session's `Pixels` say
    last: bool  # of its chunk
    late: bool  # told with the last: whether frames of the chunk were ready after they were due
    done: float  # when frames were in host memory, by the engine's clock
    seconds: float  # that the chunk's passes took so far
    sessions: int  # that shared the pass


@dataclass(frozen=True, slots=True)
class Ready:
    """A session's state is built, after it was opened or rewound."""

    session: str
    rewinds: int  # of the session, before this was asked for


class Fault(Enum):
    """What went wrong with a pass."""

    NOT_A_NUMBER = "not_a_number"
    MEMORY = "memory"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Failed:
    """A session that ended by itself. The others do not know."""

    session: str
    error: EngineFailure
    fault: Fault


Event = Ready | Decoded | Failed


@dataclass(frozen=True, slots=True)
class InFlight:
    """One pass whose frames are on their way to the host."""

    batch: list[tuple[Session, Chunk]]
    frames: list[PendingCopy]  # one per session of the batch
    finite: PendingCopy  # [B] bool: whether a session's frames are numbers
    started: float  # seconds on the engine's clock

    def ready(self) -> bool:
        return self.finite.ready()  # sent last


def check_latents(name: str, latents: Tensor, expected: tuple[int | None, ...]) -> None:
    """Refuse latents of another shape than `expected` (None: any), or that are not numbers.

    Raises:
        BadInput: names `name`, what came and what is expected.
    """
    fits = latents.dim() == len(expected) and all(
        want is None or got == want for got, want in zip(latents.shape, expected, strict=True)
    )
    if not fits or not latents.is_floating_point():
        shape = "x".join("any" if side is None else str(side) for side in expected)
        got = f"{'x'.join(map(str, latents.shape))} {latents.dtype}"
        raise BadInput(name, got=got, expected=f"floating-point latents of shape {shape}")
    if not (latents.abs() <= _LARGEST).all():  # also what is not a number
        got = "infinite, undefined or huge values"
        raise BadInput(name, got=got, expected=f"normalised latents, {_LARGEST:,.0f} at most")
