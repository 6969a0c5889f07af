"""When to show what: RTP time, made from the session's media clock alone.

Beside the path: broadcast → **timeline**. Media time stands still while a picture is held and may
go back after an interruption; what a receiver is told must do neither. So RTP time is media time
and an offset, the same for pictures and sound, which grows by what the clock stood still or went
back. Nothing here looks at a wall clock: what belongs together on the media clock has the same RTP
time for ever.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction

from talkingmachines.spec import StreamSpec

# Offsets are whole multiples of this, which is whole in every clock: of RTP, and of all rates of
# speech that Opus takes.
_GRID = 2_000  # a second


class Timeline:
    """RTP seconds of one session's frames and samples; frames are asked for in order of release."""

    def __init__(self, spec: StreamSpec) -> None:
        self._spec = spec
        self._offset: Fraction | None = None
        self._last = Fraction(-1)
        self._held: deque[tuple[int, float]] = deque()
        self._rest = 0.0  # of what was held, too little for the grid

    def held(self, frame: int, seconds: float) -> None:
        """The media clock stood still before `frame`, which has not been asked for."""
        self._held.append((frame, seconds))

    def frame(self, number: int) -> Fraction:
        """When the frame is to be shown."""
        media = Fraction(number, self._spec.fps)
        if self._offset is None:  # RTP time begins with the first frame
            self._offset = _on_grid(-media)
        while self._held and self._held[0][0] <= number:
            self._stand_still(self._held.popleft()[1])
        if media + self._offset <= self._last:
            self._offset = _on_grid(self._last + Fraction(1, self._spec.fps) - media)
        self._last = media + self._offset
        return self._last

    def sample(self, number: int) -> Fraction:
        """When the sample is to be heard, if it belongs to the last frame asked for."""
        return Fraction(number, self._spec.sample_rate) + (self._offset or 0)

    def _stand_still(self, seconds: float) -> None:
        assert self._offset is not None
        steps, self._rest = divmod(seconds * _GRID + self._rest, 1)
        self._offset += Fraction(int(steps), _GRID)


def _on_grid(seconds: Fraction) -> Fraction:
    """Not less than `seconds`."""
    return Fraction(-(-seconds.numerator * _GRID // seconds.denominator), _GRID)
