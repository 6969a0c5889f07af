"""The end of a process, as its streams see it.

SIGTERM or SIGINT starts the drain: from then on no stream begins, and what runs may go on until
the deadline. A servicer that can do better than to be cut off (hand its session over, tell its
client to go) waits for `started` beside its requests. At the deadline every handler still running
is cancelled and its caller told; a second signal brings the deadline forward to now.
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FAREWELL_SECONDS = 1.0  # for handlers that were cut off: their `finally`, and the last status


class Drain:
    """One per process; its servers and servicers share it.

    Args:
        grace_seconds: what running streams get once the drain has started.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.started = asyncio.Event()
        self._grace = grace_seconds
        self._deadline = math.inf  # loop time
        self._limits: dict[asyncio.Timeout, float] = {}  # each with its seconds past the deadline
        self._running = 0
        self._signals = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def remaining(self) -> float:
        """Seconds until running streams are cut off; infinite while no drain has started."""
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    def start(self) -> None:
        """Begin to drain; asking again changes nothing."""
        if not self.started.is_set():
            self._cut_off_at(asyncio.get_running_loop().time() + self._grace)

    def end_now(self) -> None:
        """Cut off whatever is still running."""
        self._cut_off_at(asyncio.get_running_loop().time())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count an RPC as running until its last status is on its way."""
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    @contextmanager
    def limited(self, limit: asyncio.Timeout, *, extra: float = 0.0) -> Iterator[None]:
        """Let `limit`, already entered, expire `extra` seconds after the deadline at the latest."""
        self._limits[limit] = extra
        self._shorten(limit, extra)
        try:
            yield
        finally:
            del self._limits[limit]

    async def idle(self) -> None:
        """Wait until nothing runs any more, or what was cut off has had its time to say so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                with self.limited(limit, extra=_FAREWELL_SECONDS):
                    await self._idle.wait()

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds) as limit:
                with self.limited(limit):
                    await asyncio.Event().wait()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT start the drain, and a second one end it at once."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self.end_now()
        else:
            self.start()  # which may have started already, without a signal

    def _cut_off_at(self, deadline: float) -> None:
        self.started.set()
        self._deadline = min(self._deadline, deadline)
        for limit, extra in self._limits.items():
            self._shorten(limit, extra)

    def _shorten(self, limit: asyncio.Timeout, extra: float) -> None:
        if math.isfinite(self._deadline) and not limit.expired():
            when = limit.when()
            end = self._deadline + extra
            limit.reschedule(end if when is None else min(when, end))
