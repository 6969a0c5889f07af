"""What may still be promised: device memory and device time, before either is taken.

Running sessions never pay for new ones. A session whose state does not fit into memory is refused
here. For how many there is time, by what chunks really took, is stated; whoever lets sessions in
goes by it, because a session that moves must be let in beside the one that it replaces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from talkingmachines.errors import NoCapacity
from talkingmachines.spec import StreamSpec

_SMOOTHING = 0.2  # weight of the newest chunk in the running mean


_WIDEST_BATCH = 64
_MANY = 1_000  # sessions; while nothing is known


@dataclass(frozen=True, slots=True)
class Limits:
    """What one device may promise.

    Raises:
        ValueError: a number out of its range; the message names the field.
    """

    memory_bytes: int  # device memory that sessions may hold together, >= 1
    load: float = 0.9  # share of the device's time that sessions may need together, > 0
    batch: int = 1  # sessions decoded in one pass; gains nothing on CPUs (docs/vae.md)
    retry_after: float = 2.0  # seconds after which a refused session may ask again, >= 0

    def __post_init__(self) -> None:
        _require(self.memory_bytes >= 1, "memory_bytes", self.memory_bytes, "at least 1")
        _require(0 < self.load < math.inf, "load", self.load, "a positive number")
        _require(0 <= self.retry_after < math.inf, "retry_after", self.retry_after, "0 or more")
        _require(1 <= self.batch <= _WIDEST_BATCH, "batch", self.batch, f"1 to {_WIDEST_BATCH}")


Size = tuple[int, int, int]  # latents per chunk, rows, columns in pixels


class Admission:
    """Keeps the books of one device."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.refusals = 0
        self._held: dict[str, tuple[StreamSpec, int]] = {}
        self._seconds: dict[Size, float] = {}
        self._shares: dict[Size, float] = {}  # of the device's time, as last measured
        self._largest = 0  # bytes of a session's state

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self._held.values())

    @property
    def load(self) -> float:
        """Share of the device's time that the open sessions need."""
        return sum(self._share(spec) for spec, _ in self._held.values())

    @property
    def chunk_seconds(self) -> float:
        """Device time of a chunk, of the largest size measured so far."""
        return max(self._seconds.values(), default=0.0)

    @property
    def fitting(self) -> int:
        """Sessions of the most expensive kind seen that memory and time suffice for, >= 1.

        A device too slow for one session still serves one: late is better than not at all.
        """
        share = max(self._shares.values(), default=0.0)
        by_time = int(self.limits.load / share) if share else _MANY
        by_memory = self.limits.memory_bytes // self._largest if self._largest else _MANY
        return max(1, min(by_time, by_memory))

    def admit(self, session: str, spec: StreamSpec, size: int) -> None:
        """Promise `size` bytes.

        Raises:
            NoCapacity: they are not there beside what is promised already.
        """
        self._largest = max(self._largest, size)
        free = self.limits.memory_bytes - self.bytes
        if size > free:
            self.refusals += 1
            what = f"a session of {_mib(size)} in the {_mib(max(free, 0))} left"
            raise NoCapacity(what, retry_after=self.limits.retry_after)
        self._held[session] = (spec, size)

    def release(self, session: str) -> None:
        del self._held[session]

    def measured(self, spec: StreamSpec, seconds: float) -> None:
        """A chunk of `spec` took `seconds` of the device."""
        size = _size(spec)
        before = self._seconds.get(size, seconds)
        self._seconds[size] = before + _SMOOTHING * (seconds - before)
        self._shares[size] = self._seconds[size] / spec.chunk_seconds

    def _share(self, spec: StreamSpec) -> float:
        return self._seconds.get(_size(spec), 0.0) / spec.chunk_seconds


def _size(spec: StreamSpec) -> Size:
    return spec.latents_per_chunk, spec.height, spec.width


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _require(holds: bool, field: str, got: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field}: expected {expected}, got {got}")
