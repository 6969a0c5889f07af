"""How many replicas calls need: warm room for the next ones, soon more, and slowly fewer.

Beside the apps: Serve's controller asks this instead of its own policy, which counts requests where
calls are streams that last for minutes, and keeps a share of all slots where a caller needs one
slot now. `benchmarks/autoscale.py` replays arrivals against this very class and chose the defaults.
Nothing is imported but Python's own: Serve sends it to its controller.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Protocol

_TREND_SECONDS = 60.0  # over which growth is measured
_APART_SECONDS = 1.0  # between what is remembered; Serve asks ten times as often

Sample = tuple[float, float]  # seconds of any clock, value


class Context(Protocol):
    """What Serve says of a deployment."""

    @property
    def total_num_requests(self) -> float: ...
    @property
    def target_num_replicas(self) -> int: ...
    @property
    def current_time(self) -> float: ...


class Headroom:
    """Replicas for the sessions there are, those that will have come, and some room beside.

    Args:
        slots: sessions of one replica.
        busy: of all slots, the share that may be taken: room that grows with the fleet.
        spare: slots that are free besides, however few are taken.
        ahead_seconds: how far growth is followed: until a replica that is asked for now serves.
        quiet_seconds: for so long nobody has needed a replica that is taken away.
        step_seconds: between one that is taken away and the next: its sessions move meanwhile.
    """

    def __init__(
        self,
        *,
        slots: int,
        busy: float,
        spare: int,
        ahead_seconds: float,
        quiet_seconds: float,
        step_seconds: float,
    ) -> None:
        self._slots = slots
        self._busy = busy
        self._spare = spare
        self._ahead = ahead_seconds
        self._quiet = quiet_seconds
        self._step = step_seconds
        self._sessions = deque[Sample]()  # of the last minute
        self._wanted = deque[Sample]()  # of the quiet time
        self._since: float | None = None  # when it was first asked
        self._fewer_at = -math.inf  # when one was last taken away

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """As Serve asks; its bounds come after."""
        decided = self.decide(
            context.total_num_requests,
            replicas=context.target_num_replicas,
            now=context.current_time,
        )
        return decided, {}

    def decide(self, sessions: float, *, replicas: int, now: float) -> int:
        """How many there should be.

        Args:
            sessions: attached, on the average of late.
            replicas: that there should be by the last decision.
            now: seconds of any clock.
        """
        self._since = now if self._since is None else self._since
        _remember(self._sessions, (now, sessions), seconds=_TREND_SECONDS)
        wanted = self._replicas(sessions + self._growth(sessions, now))
        _remember(self._wanted, (now, wanted), seconds=self._quiet)
        if wanted >= replicas:
            return wanted
        needed = int(max(value for _, value in self._wanted))
        known = now - self._since >= self._quiet  # else: what was needed before, nobody knows
        if known and needed < replicas and now - self._fewer_at >= self._step:
            self._fewer_at = now
            return replicas - 1
        return replicas

    def _replicas(self, sessions: float) -> int:
        slots = max(sessions / self._busy, sessions + self._spare)
        # A mean of whole numbers is not quite whole.
        return max(1, math.ceil(round(slots / self._slots, 6)))

    def _growth(self, sessions: float, now: float) -> float:
        """Sessions more by when a replica that is asked for now serves; none where they shrink."""
        then, before = self._sessions[0]
        if now - then < _TREND_SECONDS / 2:
            return 0.0  # too short to tell
        return max(0.0, (sessions - before) / (now - then) * self._ahead)


def _remember(samples: deque[Sample], sample: Sample, *, seconds: float) -> None:
    """Add the newest, and forget what is older than `seconds`."""
    if samples and sample[0] - samples[-1][0] < _APART_SECONDS:
        samples[-1] = (samples[-1][0], max(samples[-1][1], sample[1]))
    else:
        samples.append(sample)
    while sample[0] - samples[0][0] > seconds:
        samples.popleft()
