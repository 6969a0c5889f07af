"""What may still be promised: device memory and device time, before either is taken.

Running sessions never pay for new ones: a session that does not fit is refused with the time after
which to ask again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from talkingmachines.errors import NoCapacity
from talkingmachines.spec import StreamSpec

_SMOOTHING = 0.2  # weight of the newest chunk in the running mean


_WIDEST_BATCH = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What one device may promise.

    Raises:
        ValueError: a number out of its range; the message names the field.
    """

    memory_bytes: int  # device memory that sessions may hold together, >= 1
    load: float = 0.9  # share of the device's time that may be promised to sessions, > 0
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

    def admit(self, session: str, spec: StreamSpec, size: int) -> None:
        """Promise `size` bytes and a chunk's time per chunk period.

        Raises:
            NoCapacity: it does not fit beside what is promised already. Chunks of a size that was
                never measured are taken to cost nothing.
        """
        free = self.limits.memory_bytes - self.bytes
        if size > free:
            self._refuse(f"a session of {_mib(size)} in the {_mib(max(free, 0))} left")
        # A device too slow for one session still serves one: late is better than not at all.
        if self._held and self.load + self._share(spec) > self.limits.load:
            self._refuse(f"one more session on a device with {len(self._held)}")
        self._held[session] = (spec, size)

    def release(self, session: str) -> None:
        del self._held[session]

    def measured(self, spec: StreamSpec, seconds: float) -> None:
        """A chunk of `spec` took `seconds` of the device."""
        size = _size(spec)
        before = self._seconds.get(size, seconds)
        self._seconds[size] = before + _SMOOTHING * (seconds - before)

    def _share(self, spec: StreamSpec) -> float:
        return self._seconds.get(_size(spec), 0.0) / spec.chunk_seconds

    def _refuse(self, what: str) -> None:
        self.refusals += 1
        raise NoCapacity(what, retry_after=self.limits.retry_after)


def _size(spec: StreamSpec) -> Size:
    return spec.latents_per_chunk, spec.height, spec.width


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _require(holds: bool, field: str, got: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field}: expected {expected}, got {got}")
