"""What one caller, and one session, may use."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.gateway.images import ImageLimits


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Of one session."""

    session_seconds: float = 7200.0
    idle_seconds: float = 300.0  # without any message of the client; positions count
    warning_seconds: float = 30.0  # before either of these ends it
    buffered_seconds: float = 120.0  # speech that may wait to be played: who sends more is ended
    messages_per_second: float = 500.0


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Of one API key, or one subject of tokens."""

    sessions: int = 10  # at once, in the whole fleet
    avatars: int = 100  # of the caller's tenant
    requests_per_second: float = 20.0  # besides what sessions carry; per gateway
    image: ImageLimits = field(default_factory=ImageLimits)
    session: SessionLimits = field(default_factory=SessionLimits)


class Allowance:
    """So much a second on the average, with a burst of two seconds' worth.

    Time is given by the caller, in seconds of any clock.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, 2 * per_second)
        self._left = self._most
        self._seen: float | None = None

    def take(self, now: float) -> bool:
        """Use one; False when none is left."""
        if self._seen is not None:
            self._left = min(self._most, self._left + (now - self._seen) * self._per_second)
        self._seen = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
