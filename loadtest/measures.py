"""What is measured, how it is put together, and whether it is good enough. Pure functions.

A sample is one value at one moment of the run. Everything is a sample: a waiting time, and a thing
that happened (then the value says how often). So percentiles by phase are all that is needed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Measure(StrEnum):
    """What samples are of; each with its unit."""

    CALLS = "calls"  # that began to ring
    CONNECTED = "connected"  # 1 for each that was taken
    COMPLETED = "completed"  # 1 for each that ended as its caller wanted
    REFUSALS = "refusals"  # for want of room, or of quota
    ERRORS = "errors"  # typed ones that ended a call other than by refusing it
    FAULTS_OF_OURS = "faults_of_ours"  # calls that ended with anything else
    FIRST_FRAME = "first_frame"  # s, from ringing
    ANSWER = (
        "answer"  # s, DRIVE: from its speech to its sound; CONVERSE: from the user's last voice
    )
    STALLS = "stalls"  # s, of each time a viewer's picture stood still
    CUT_PAUSES = "cut_pauses"  # s, that a viewer's picture stood still after an interruption
    STALLED_SHARE = "stalled_share"  # 0 to 1, of each call's time
    FRAMES = "frames"  # that came
    MISSING_FRAMES = "missing_frames"  # that never came
    DEADLINE_MISSES = "deadline_misses"  # chunks, as the gateway counts them
    HAND_OVERS = "hand_overs"  # attachments changed as planned
    REBUILDS = "rebuilds"  # attachments made anew after a failure
    RECONNECTS = "reconnects"  # s without a connection, of each time a call was resumed
    SKEW = "skew"  # s, pictures minus sound as they came; positive: pictures are late
    SKEW_DRIFT = "skew_drift"  # s, from the first to the last fifth of a call, whatever its sign
    INTERRUPTED = "interrupted"  # s, from cutting the character off to its answer
    MARKS_SEEN = "marks_seen"  # pictures and pieces of sound whose mark was looked at
    CROSS_TALK = "cross_talk"  # of these: with somebody else's mark
    QUEUED = "queued"  # s, waited to be let in
    FAULTS = "faults"  # 1 for each thing broken on purpose
    MEMORY_GROWTH = "memory_growth"  # MB of each process, from its second to its last fifth
    MEMORY_PEAK = "memory_peak"  # MB of each process


@dataclass(frozen=True, slots=True)
class Sample:
    """One value; `at` is in seconds since the run began."""

    measure: Measure
    at: float
    value: float = 1.0
    call: int | None = None


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank).

    Never a value that was not measured, and the largest where there are too few to tell.
    """
    ordered = sorted(values)
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[max(0, rank - 1)]


class Summary(StrEnum):
    """How samples become one number."""

    COUNT = "count"
    SUM = "sum"
    MEAN = "mean"
    P50 = "p50"
    P95 = "p95"
    P99 = "p99"
    MOST = "most"
    LEAST = "least"

    def over(self, values: Sequence[float]) -> float | None:
        """None where there is nothing to say anything about."""
        if not values and self not in (Summary.COUNT, Summary.SUM):
            return None
        return _SUMMARIES[self](values)


_SUMMARIES: Mapping[Summary, Callable[[Sequence[float]], float]] = {
    Summary.COUNT: len,
    Summary.SUM: math.fsum,
    Summary.MEAN: lambda values: math.fsum(values) / len(values),
    Summary.P50: lambda values: percentile(values, 50),
    Summary.P95: lambda values: percentile(values, 95),
    Summary.P99: lambda values: percentile(values, 99),
    Summary.MOST: max,
    Summary.LEAST: min,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an objective was met."""

    says: str  # in words, with the limit
    got: float | None  # None: nothing was measured
    met: bool


def judge(
    measure: Measure,
    of: Summary,
    samples: Iterable[Sample],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    where: str = "",
) -> Verdict:
    """One objective. What was never measured meets none: a test that saw nothing shows nothing.

    Args:
        samples: of the phase that is meant; those of other measures are left out.
        where: the phase, for the words.
    """
    got = of.over([sample.value for sample in samples if sample.measure is measure])
    limits = [f"at least {at_least:g}"] if at_least is not None else []
    limits += [f"at most {at_most:g}"] if at_most is not None else []
    says = f"{measure} ({of}{f', {where}' if where else ''}): {' and '.join(limits)}"
    low = got is not None and (at_least is None or got >= at_least)
    high = got is not None and (at_most is None or got <= at_most)
    return Verdict(says, got, low and high)


def by_phase(
    samples: Iterable[Sample], phase_at: Callable[[float], str]
) -> dict[str, list[Sample]]:
    """Samples by the phase in which they were taken."""
    found = defaultdict[str, list[Sample]](list)
    for sample in samples:
        found[phase_at(sample.at)].append(sample)
    return dict(found)


def table(samples: Iterable[Sample]) -> dict[str, dict[str, float]]:
    """Every summary of every measure of which there is a sample."""
    values = defaultdict[Measure, list[float]](list)
    for sample in samples:
        values[sample.measure].append(sample.value)
    return {
        str(measure): {
            str(of): round(got, 6)
            for of in Summary
            if (got := of.over(values[measure])) is not None
        }
        for measure in Measure
        if measure in values
    }


def drift(series: Sequence[tuple[float, float]], *, skip: int = 0) -> float | None:
    """How much higher the middle of the last fifth of a series is than that of an early one.

    Args:
        series: (when, value), in order; cut into fifths by time.
        skip: fifths at the beginning that do not count, as what fills its caches.

    Returns:
        None where a fifth is empty.
    """
    if len(series) < 2:
        return None
    begin, end = series[0][0], series[-1][0]
    fifth = (end - begin) / 5
    first = [value for at, value in series if 0 <= at - begin - skip * fifth <= fifth]
    last = [value for at, value in series if at >= end - fifth]
    if not first or not last:
        return None
    return percentile(last, 50) - percentile(first, 50)
