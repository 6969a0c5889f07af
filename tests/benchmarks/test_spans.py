"""Time that is busy, idle, or lies under something else's: by counting every tick."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.overlap import bars, chrome, found, middle, with_ways
from benchmarks.spans import Interval, Span, common, hidden_share, idle_share, merged, seconds

TICKS = 40
INTERVALS = st.lists(
    st.tuples(st.integers(0, TICKS), st.integers(0, TICKS)).map(
        lambda ends: (min(ends), max(ends))
    ),
    max_size=8,
)


def ticks(intervals: list[Interval]) -> set[int]:
    return {tick for began, ended in intervals for tick in range(int(began), int(ended))}


@given(INTERVALS)
def test_merged_intervals_cover_the_same_time_once(intervals: list[Interval]) -> None:
    one = merged(intervals)
    assert ticks(one) == ticks(intervals)
    assert seconds(intervals) == len(ticks(intervals))
    assert all(before[1] < after[0] for before, after in pairwise(one))


@given(INTERVALS, INTERVALS)
def test_common_time_is_in_both(first: list[Interval], second: list[Interval]) -> None:
    assert ticks(common(first, second)) == ticks(first) & ticks(second)


@given(INTERVALS, INTERVALS)
def test_shares_are_those_of_ticks(busy: list[Interval], under: list[Interval]) -> None:
    idle = TICKS - len(ticks(busy))
    assert idle_share(busy, (0, TICKS)) == pytest.approx(idle / TICKS)
    if ticks(busy):
        share = len(ticks(busy) & ticks(under)) / len(ticks(busy))
        assert hidden_share(busy, under) == pytest.approx(share)


def drawn(chunk: int) -> list[Span]:
    """Two seconds of denoising and one of context, chunk after chunk; decoding takes one second,
    begins half a second after the latents are there, and is encoded in a quarter."""
    at = 3.0 * chunk
    return [
        Span("score", "chunk.denoise", chunk, at, at + 2),
        Span("score", "chunk.context", chunk, at + 2, at + 3),
        Span("tm-vae", "chunk.vae", chunk, at + 2.25, at + 3.75),
        Span("vae", "chunk.decode", chunk, at + 2.5, at + 3.5),
        Span("vae", "chunk.encode", chunk, at + 3.5, at + 3.75),
        Span("gateway", "turn", None, at, at + 3),
    ]


def test_a_device_that_is_always_drawing_hides_all_that_others_do() -> None:
    spans = with_ways([span for chunk in range(9) for span in drawn(chunk)])
    within = middle(spans, 2)
    assert within == (6.0, 24.0)
    assert found(spans, within) == {
        "score's device idle": 0.0,
        "VAE's device idle": 66.7,
        "decoding under drawing": 100.0,
        "way between engines under drawing": 100.0,
        "encoding under drawing": 100.0,
    }


def test_one_device_for_both_hides_nothing() -> None:
    spans = [
        span
        for chunk in range(9)
        for span in (
            Span("one", "chunk.denoise", chunk, 4.0 * chunk, 4.0 * chunk + 3),
            Span("one", "chunk.decode", chunk, 4.0 * chunk + 3, 4.0 * chunk + 4),
        )
    ]
    shares = found(spans, middle(spans, 1))
    assert shares["decoding under drawing"] == 0.0
    assert shares["score's device idle"] == 25.0
    assert shares["VAE's device idle"] == 75.0


def test_the_trace_has_every_span_where_it_happened() -> None:
    spans = with_ways(drawn(0) + drawn(1))
    trace = chrome(spans)
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(spans) == 10  # the way between engines is one of them
    named = {event["name"]: event for event in events}
    assert named["decode 1"]["ts"] == 5.5e6
    assert named["decode 1"]["dur"] == 1e6
    assert named["on its way 0"]["dur"] == 0.25e6
    assert {event["args"]["chunk"] for event in events} == {0, 1}
    assert [bar.label for bar in bars(spans, 1, 1) if bar.kind == "chunk.decode"] == ["decode 1"]
