"""Percentiles, objectives, stalls and skew, against cases worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.measures import Measure, Sample, Summary, by_phase, drift, judge, percentile, table
from loadtest.screen import Screen, Together


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([15, 20, 35, 40, 50], 30, 20),  # the nearest-rank example of every textbook
        ([15, 20, 35, 40, 50], 40, 20),
        ([15, 20, 35, 40, 50], 50, 35),
        ([15, 20, 35, 40, 50], 100, 50),
        ([50, 15, 40, 20, 35], 5, 15),
        ([7], 99, 7),
        (range(1, 101), 95, 95),
        (range(1, 101), 99, 99),
    ],
)
def test_percentiles(values: list[float], percent: float, expected: float) -> None:
    assert percentile(list(values), percent) == expected


SAMPLES = [
    Sample(Measure.FIRST_FRAME, 1.0, 0.4),
    Sample(Measure.FIRST_FRAME, 12.0, 0.8),
    Sample(Measure.FIRST_FRAME, 13.0, 0.6),
    Sample(Measure.REFUSALS, 13.0),
]


@pytest.mark.parametrize(
    ("measure", "of", "limits", "got", "met"),
    [
        ("first_frame", "p95", {"at_most": 0.8}, 0.8, True),
        ("first_frame", "p95", {"at_most": 0.79}, 0.8, False),
        ("first_frame", "p50", {"at_least": 0.5, "at_most": 0.7}, 0.6, True),
        ("first_frame", "mean", {"at_most": 1}, 0.6, True),
        ("first_frame", "least", {"at_least": 0.5}, 0.4, False),
        ("first_frame", "count", {"at_least": 3}, 3, True),
        ("refusals", "count", {"at_most": 0}, 1, False),
        ("cross_talk", "sum", {"at_most": 0}, 0, True),  # none is what was asked for
        ("answer", "p95", {"at_most": 1}, None, False),  # nothing seen is nothing shown
    ],
)
def test_objectives(
    measure: str, of: str, limits: dict[str, Any], got: float | None, met: bool
) -> None:
    verdict = judge(Measure(measure), Summary(of), SAMPLES, **limits)
    assert verdict.met is met
    assert verdict.got == (None if got is None else pytest.approx(got))


def test_every_phase_has_its_own_figures() -> None:
    phases = by_phase(SAMPLES, lambda at: "early" if at < 10 else "late")
    assert table(phases["early"]) == {"first_frame": pytest.approx(_all(0.4, count=1, total=0.4))}
    late = table(phases["late"])
    assert late["first_frame"]["p50"] == 0.6
    assert late["first_frame"]["most"] == 0.8
    assert late["refusals"]["sum"] == 1


def _all(value: float, *, count: float, total: float) -> dict[str, float]:
    same = ("mean", "p50", "p95", "p99", "most", "least")
    return {"count": count, "sum": total} | dict.fromkeys(same, value)


def test_drift_is_from_an_early_fifth_to_the_last() -> None:
    flat = [(float(at), 100.0) for at in range(51)]
    assert drift(flat) == 0
    leaking = [(float(at), 100.0 + at) for at in range(51)]
    assert drift(leaking) == 40  # middles of 0-10 and 40-50
    filling = [(at, held if at > 10 else 0.0) for at, held in flat]
    assert drift(filling) == 100
    assert drift(filling, skip=1) == 0
    assert drift([(0.0, 1.0)]) is None


def stalls(screen: Screen) -> list[tuple[float, float]]:
    return [(round(began, 6), round(seconds, 6)) for began, seconds in screen.stalls]


def test_a_viewer_whose_frames_are_on_time_sees_no_stall() -> None:
    screen = Screen(fps=10, buffer_seconds=0.2)
    for number in range(50):
        screen.frame(number, 100 + number / 10 + (0.19 if number % 7 else 0))
    screen.gone(105.2)
    assert screen.stalls == []
    assert (screen.frames, screen.missing) == (50, 0)


def test_a_viewer_counts_what_came_too_late_for_its_buffer() -> None:
    screen = Screen(fps=10, buffer_seconds=0.2)
    for number in range(10):
        screen.frame(number, number / 10)
    # Frame 10 is due at 1.2 s and comes at 1.7 s; what follows is due half a second later.
    for number in range(10, 20):
        screen.frame(number, 1.7 + (number - 10) / 10)
    assert stalls(screen) == [(1.2, 0.5)]
    screen.frame(20, 2.75)  # due at 2.7 s: too little to be seen
    assert len(screen.stalls) == 1


def test_frames_that_never_come_leave_the_picture_standing() -> None:
    screen = Screen(fps=10, buffer_seconds=0.2)
    screen.frame(0, 0.0)
    screen.frame(1, 0.1)
    screen.frame(7, 0.7)  # 2 to 6 never come: frame 1 stays from 0.4 s to 0.9 s
    assert screen.missing == 5
    assert stalls(screen) == [(0.4, 0.5)]


def test_the_pause_after_an_interruption_is_counted_apart_and_the_buffer_fills_again() -> None:
    screen = Screen(fps=10, buffer_seconds=0.2)
    for number in range(20):
        screen.frame(number, number / 10)
    assert screen.shown(1.65) == 15
    screen.cut(13, now=1.7)  # what was shown at 1.5 s
    for number in range(13, 20):
        screen.frame(number, 2.1 + (number - 13) / 10)
    assert stalls(screen) == []
    assert screen.missing == 0
    assert [round(pause, 6) for pause in screen.pauses] == [0.6]  # 0.4 s to come, 0.2 s of buffer
    screen.frame(20, 3.5)  # due at 2.3 s + 7 frames
    assert stalls(screen) == [(3.0, 0.5)]


def test_a_call_that_ends_without_its_last_frames_has_stalled() -> None:
    screen = Screen(fps=10, buffer_seconds=0.0)
    screen.frame(0, 0.0)
    screen.gone(3.1)
    assert stalls(screen) == [(0.1, 3.0)]


def test_skew_is_between_a_picture_and_the_sound_of_its_moment() -> None:
    together = Together(fps=25)
    together.frame(0, 10.0)
    together.frame(1, 10.05)
    assert together.sound(0.0, 10.01) == pytest.approx(-0.01)
    assert together.sound(0.04, 10.04) == pytest.approx(0.01)  # the picture was late
    assert together.sound(0.079, 10.05) == pytest.approx(0.0)
    assert together.sound(0.08, 10.1) is None
