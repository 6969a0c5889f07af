"""One thing to wait for: that something changed, or that time passed."""

from __future__ import annotations

import asyncio


class Wake:
    """Wakes everybody who waits, each time it is given.

    Every frame of every session is waited for here, so it is a bare future and a timer: an event
    within a timeout costs several times as much.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def give(self) -> None:
        for waiting in self._waiting:
            _wake(waiting)
        self._waiting.clear()

    async def wait(self, seconds: float | None = None) -> None:
        """Return when the signal is given, at the latest after `seconds`."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, _wake, waiting)
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)
            if timer is not None:
                timer.cancel()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
