"""Which chunks next, and whether one more session fits: arithmetic on measured times, no device.

Under `engine.py`. The chunk whose latents are needed first goes first; others of the same shape
join it when a batch is cheaper than one after another and the first is still in time. A session is
admitted when all sessions together need less of a chunk's period than there is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

# The rest is for attaching sessions, whose context passes are not counted, and for jitter.
_USABLE = 0.9
_NEW_WEIGHT = 0.2  # of the newest measurement in the running mean


@dataclass(frozen=True, slots=True)
class Ready:
    """A chunk that could be drawn now."""

    session: str
    deadline: float  # seconds on the engine's clock
    shape: Hashable  # chunks of one shape can share a batch


class Costs:
    """Seconds that a batch of chunks takes, context pass included, by its number of rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def record(self, rows: int, seconds: float) -> None:
        old = self._seconds.get(rows, seconds)
        self._seconds[rows] = old + _NEW_WEIGHT * (seconds - old)

    def seconds(self, rows: int) -> float:
        """Measured; else in proportion to the nearest smaller batch; 0 before any was."""
        if rows in self._seconds:
            return self._seconds[rows]
        known = max((n for n in self._seconds if n < rows), default=None)
        return 0.0 if known is None else self._seconds[known] * rows / known

    def gains(self, rows: int) -> bool:
        """Whether a batch of `rows` is cheaper than one chunk after another, or was never tried."""
        return rows not in self._seconds or self._seconds[rows] < rows * self.seconds(1)

    def measured(self) -> dict[int, float]:
        return dict(sorted(self._seconds.items()))


def pick(ready: Sequence[Ready], costs: Costs, *, now: float, most: int) -> list[Ready]:
    """The chunks to draw next, at most `most` of them, the most urgent first; `ready` not empty."""
    in_order = sorted(ready, key=lambda item: item.deadline)
    first = in_order[0]
    peers = [item for item in in_order if item.shape == first.shape]
    late_anyway = now + costs.seconds(1) > first.deadline
    for rows in range(min(len(peers), most), 1, -1):
        in_time = now + costs.seconds(rows) <= first.deadline
        if costs.gains(rows) and (in_time or late_anyway):
            return peers[:rows]
    return [first]


def load(sessions: int, costs: Costs, *, period: float, most: int) -> float:
    """The part of a chunk's period that `sessions` live sessions need; above 1 they fall behind."""
    rows = min(range(1, most + 1), key=lambda n: costs.seconds(n) / n)
    batches, rest = divmod(sessions, rows)
    return (batches * costs.seconds(rows) + (costs.seconds(rest) if rest else 0.0)) / period


def admits(needed: float) -> bool:
    """Whether sessions that need this part of a chunk's period would all meet their deadlines."""
    return needed <= _USABLE
