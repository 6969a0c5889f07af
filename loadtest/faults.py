"""What breaks during a run: processes killed or frozen, lines between parts cut, held or slowed.

Drawn beforehand from the scenario's seed; only which of several processes is meant is drawn when
the time has come, because they change.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from loadtest.arrivals import drawn
from loadtest.book import Book
from loadtest.processes import of_part
from loadtest.scenario import Disturb, Fault, Freeze, Kill, Line, Part, Scenario
from loadtest.wire import Wire


@dataclass(frozen=True, slots=True)
class Due:
    """One fault that is to come."""

    at: float  # seconds since the run began
    fault: Fault
    seconds: float  # that it lasts; 0: what is killed stays dead


def planned(scenario: Scenario) -> list[Due]:
    """All of a run, in order."""
    faults = scenario.faults
    if faults is None:
        return []
    draw = random.Random(f"faults {scenario.seed}")
    end = scenario.seconds - faults.last_before
    found, at = list[Due](), faults.first_after
    waiting = list[Fault]()
    while at <= end:
        # All of them in some order, then again: a short run misses none for bad luck.
        waiting = waiting or draw.sample(faults.each_of, len(faults.each_of))
        fault = waiting.pop()
        seconds = 0.0 if isinstance(fault, Kill) else drawn(fault.seconds, draw)
        found.append(Due(at, fault, seconds))
        at += faults.every_seconds
    return found


@dataclass(frozen=True, slots=True)
class Wounds:
    """Hurts one fleet.

    Args:
        root: the process below which the fleet's are.
        wires: between its parts.
    """

    root: int
    wires: Mapping[Line, Wire]
    book: Book

    async def suffer(self, plan: list[Due], draw: random.Random) -> None:
        """All faults, each at its time; what lasts is over when this is cancelled."""
        async with asyncio.TaskGroup() as running:
            for due in plan:
                await asyncio.sleep(due.at - self.book.now)
                running.create_task(self._one(due, draw))

    async def _one(self, due: Due, draw: random.Random) -> None:
        match due.fault:
            case Kill(part=part):
                await self._signal(part, signal.SIGKILL, "killed", draw)
            case Freeze(part=part):
                pid = await self._signal(
                    part, signal.SIGSTOP, f"frozen for {due.seconds:.1f} s", draw
                )
                try:
                    await asyncio.sleep(due.seconds)
                finally:
                    if pid is not None:
                        _send(pid, signal.SIGCONT)
            case Disturb():
                await self._disturb(due.fault, due.seconds)

    async def _signal(
        self, part: Part, what: signal.Signals, says: str, draw: random.Random
    ) -> int | None:
        """Send a signal to one of a part's processes; which, or None when it has none just now."""
        found = await asyncio.to_thread(of_part, self.root, part)
        if not found:
            self.book.hurt(f"{part} is not there to be {says.split()[0]}")
            return None
        pid = draw.choice(found)
        self.book.hurt(f"{part} {says}")
        _send(pid, what)
        return pid

    async def _disturb(self, fault: Disturb, seconds: float) -> None:
        wire = self.wires[fault.line]
        self.book.hurt(f"line to {fault.line}: {fault.do} for {seconds:.1f} s")
        acts: dict[str, Any] = {
            "cut": wire.cut,
            "hold": wire.hold,
            "delay": lambda: wire.slow(fault.delay_ms / 1000),
        }
        acts[fault.do]()
        try:
            await asyncio.sleep(seconds)
        finally:
            wire.mend()


def _send(pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, what)
