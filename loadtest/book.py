"""Where everything that happens in a run is written down, with its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.measures import Measure, Sample


@dataclass(slots=True)
class CallLog:
    """How one call went."""

    number: int
    kind: str
    avatar: str
    began: float  # seconds since the run began
    ended: float | None = None
    outcome: str = ""  # "completed", or the name of an error
    detail: str = ""  # what the error said
    stalls: list[tuple[float, float]] = field(default_factory=list)  # when, how long; s


@dataclass(frozen=True, slots=True)
class Injury:
    """Something that was broken on purpose."""

    at: float
    what: str


class Book:
    """Of one run. Times are seconds since it was made, or since `begin`.

    Args:
        clock: any that never goes back, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begin = clock()
        self.samples: list[Sample] = []
        self.calls: list[CallLog] = []
        self.injuries: list[Injury] = []
        self.memory: dict[str, list[tuple[float, float]]] = {}  # MB by process, with its time

    def begin(self) -> None:
        """The run begins now."""
        self._begin = self._clock()

    @property
    def now(self) -> float:
        return self._clock() - self._begin

    def note(
        self,
        measure: Measure,
        value: float = 1.0,
        *,
        call: int | None = None,
        at: float | None = None,
    ) -> None:
        """Add one value, of now unless `at` says when."""
        self.samples.append(Sample(measure, self.now if at is None else at, value, call))

    def hurt(self, what: str) -> None:
        self.injuries.append(Injury(self.now, what))
        self.note(Measure.FAULTS)
