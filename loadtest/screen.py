"""A viewer: waits for a start buffer, then shows frames when they are due, and counts its stalls.

Knows times and frame numbers alone, and is told both, so its tests need no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Shorter than this nobody sees that a picture stands still; one frame at 25 fps lasts 0.04 s.
NOTICED_SECONDS = 0.1


@dataclass
class Screen:
    """Frames of one call in the order in which they come.

    A frame that comes later than it is due makes the picture stand still until it comes, and all
    that follows is due so much later. Frames that never come leave the one before on the screen.

    Args:
        fps: of the stream.
        buffer_seconds: from the first frame that comes to the first that is shown.
    """

    fps: int
    buffer_seconds: float
    stalls: list[tuple[float, float]] = field(default_factory=list)  # when it began, s; how long, s
    pauses: list[float] = field(default_factory=list)  # s, after interruptions
    frames: int = 0
    missing: int = 0
    _first: int = 0
    _start: float = 0.0  # when the first frame is, or would have been, shown
    _last: int | None = None
    _cut_at: float | None = None  # since when nothing has come after an interruption

    def frame(self, number: int, now: float) -> None:
        """A frame has come."""
        self.frames += 1
        if self._last is None or self._cut_at is not None:
            self._begin(number, now)
        else:
            self._follow(number, now, self._last)
        self._last = number

    def cut(self, number: int, now: float) -> None:
        """The character was cut off: what lies at and behind this frame is void and comes again.

        The picture stands still until the next frame, and until the buffer is filled again: a pause
        that every interruption has, counted apart from stalls.
        """
        if self._last is not None:
            self._last = min(self._last, number - 1)
            self._cut_at = now if self._cut_at is None else self._cut_at

    def gone(self, now: float) -> None:
        """The call ends: whatever was due by now and did not come is a stall."""
        if self._last is not None and self._cut_at is None:
            self._noted(self._due(self._last + 1), now)

    def shown(self, now: float) -> int:
        """One past the frame that is on the screen."""
        if self._last is None:
            return 0
        due = self._first + int((now - self._start) * self.fps) + 1
        return max(self._first, min(due, self._last + 1))

    def _begin(self, number: int, now: float) -> None:
        self._first, self._start = number, now + self.buffer_seconds
        if self._cut_at is not None:
            self.pauses.append(self._start - self._cut_at)
            self._cut_at = None

    def _follow(self, number: int, now: float, last: int) -> None:
        missing = max(0, number - last - 1)
        self.missing += missing
        late = max(0.0, now - self._due(number))
        # From when the frame after the last should have been there, until this one is.
        self._noted(self._due(last + 1), self._due(number) + late)
        self._start += late

    def _due(self, number: int) -> float:
        return self._start + (number - self._first) / self.fps

    def _noted(self, since: float, until: float) -> None:
        if until - since >= NOTICED_SECONDS:
            self.stalls.append((since, until - since))


@dataclass
class Together:
    """How far pictures and sound of the same moment come apart from each other."""

    fps: int
    _came: dict[int, float] = field(default_factory=dict)  # the last frames, by number

    def frame(self, number: int, now: float) -> None:
        self._came[number] = now
        while len(self._came) > 10 * self.fps:
            del self._came[next(iter(self._came))]

    def sound(self, seconds: float, now: float) -> float | None:
        """Seconds by which the picture shown at a moment came later than that moment's sound.

        Args:
            seconds: the sound's place on the media clock.

        Returns:
            None where that moment's frame is not known.
        """
        came = self._came.get(int(seconds * self.fps + 1e-6))
        return None if came is None else came - now
