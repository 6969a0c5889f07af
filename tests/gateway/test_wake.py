"""Whoever waits is woken by the signal or by time, and leaves nothing behind."""

from __future__ import annotations

import asyncio

from services.gateway.wake import Wake
from tests.virtual_time import run_virtual


def test_everybody_who_waits_is_woken_once() -> None:
    async def main() -> None:
        wake, loop = Wake(), asyncio.get_running_loop()
        waiting = [asyncio.create_task(wake.wait(seconds)) for seconds in (None, 5.0, 60.0)]
        await asyncio.sleep(1)
        wake.give()
        await asyncio.gather(*waiting)
        assert loop.time() == 1
        late = asyncio.create_task(wake.wait(2))  # the signal is over
        await late
        assert loop.time() == 3

    run_virtual(main())


def test_time_wakes_only_whose_time_it_is() -> None:
    async def main() -> None:
        wake, loop, woken = Wake(), asyncio.get_running_loop(), list[tuple[float, float]]()

        async def wait(seconds: float) -> None:
            await wake.wait(seconds)
            woken.append((seconds, loop.time()))

        await asyncio.gather(*(wait(seconds) for seconds in (3.0, 0.0, 1.5)))
        assert woken == [(0.0, 0.0), (1.5, 1.5), (3.0, 3.0)]

    run_virtual(main())


def test_who_is_cancelled_is_forgotten() -> None:
    async def main() -> None:
        wake = Wake()
        gone, stays = [asyncio.create_task(wake.wait(9)) for _ in range(2)]
        await asyncio.sleep(1)
        gone.cancel()
        wake.give()
        await stays
        assert gone.cancelled() or gone.cancelling()

    run_virtual(main())
