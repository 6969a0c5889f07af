"""When callers ring, and which kind each is: drawn beforehand, from the scenario's seed alone.

Open loop: nobody waits for anybody, so a fleet that grows slow gets no fewer calls for it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.scenario import Caller, Ending, Phase, Range, Scenario


@dataclass(frozen=True, slots=True)
class Arrival:
    """One caller that will ring."""

    number: int  # from 0, in order
    at: float  # seconds since the run began
    caller: Caller
    call_seconds: float
    ending: Ending
    seed: int  # of everything else that it draws


def arrivals(scenario: Scenario) -> list[Arrival]:
    """All of a run, in order."""
    draw = random.Random(f"arrivals {scenario.seed}")
    times, begin = list[float](), 0.0
    for phase in scenario.phases:
        times += [begin + at for at in _times(phase, draw)]
        begin += phase.seconds
    return [_arrival(scenario, number, at) for number, at in enumerate(sorted(times))]


def _arrival(scenario: Scenario, number: int, at: float) -> Arrival:
    # By number: more callers, or other times, leave those that there were as they were.
    draw = random.Random(f"caller {scenario.seed} {number}")
    kinds = scenario.callers
    (caller,) = draw.choices(kinds, [kind.share for kind in kinds])
    (ending,) = draw.choices(list(caller.endings), list(caller.endings.values()))
    seconds = drawn(caller.call_seconds, draw)
    return Arrival(number, at, caller, seconds, ending, draw.getrandbits(32))


def drawn(given: Range, draw: random.Random) -> float:
    return draw.uniform(given.least, given.most)


def _times(phase: Phase, draw: random.Random) -> Iterator[float]:
    """Seconds since the phase began."""
    yield from [0.0] * phase.at_once
    first, last = phase.rates
    expected = (first + last) / 2 * phase.seconds
    count = _next(phase, draw) if phase.spread == "random" else 0.0
    while count < expected:
        yield _when(count, first, (last - first) / phase.seconds)
        count += _next(phase, draw)


def _next(phase: Phase, draw: random.Random) -> float:
    """How much later the next one comes, in callers that are expected meanwhile."""
    return draw.expovariate(1.0) if phase.spread == "random" else 1.0


def _when(count: float, rate: float, slope: float) -> float:
    """The time after which so many are expected: where rate t + slope t^2 / 2 = count."""
    if abs(slope) < 1e-12:
        return count / rate
    return (math.sqrt(max(0.0, rate * rate + 2 * slope * count)) - rate) / slope
