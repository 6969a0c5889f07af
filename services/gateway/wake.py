"""One thing to wait for: that something changed, or that time passed."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Wake:
    """Wakes everybody who waits, each time it is given."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def give(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Return when the signal is given, at the latest after `seconds`."""
        event = self._event
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
