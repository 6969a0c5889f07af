"""Results are of one shape, and two of them are compared fairly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.machine import describe, describe_run
from benchmarks.record import Figure, Ratio, Result, names, ratios, read

POSITIVE = st.floats(1e-3, 1e6)


def result(**figures: Figure) -> Result:
    return Result("some", describe_run(), describe(), figures, {"rows": [1, 2]})


@pytest.mark.parametrize("name", names())
def test_what_is_kept_can_be_read(name: str) -> None:
    kept = read(name)
    assert kept is not None
    assert kept.benchmark == name
    assert kept.run.keys() == {"command", "when", "commit"}
    assert kept.run["command"].startswith("python -m benchmarks.")
    assert {"processor", "device", "threads", "python", "torch"} <= kept.machine.keys()
    assert kept.figures
    assert all(figure.better in ("less", "more") for figure in kept.figures.values())
    assert not any(isinstance(figure.value, str) for figure in kept.figures.values())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = result(chunk=Figure(3.5, "ms"), calls=Figure(80, "calls", "more"))
    assert written.write(tmp_path) == tmp_path / "some.json"
    assert read("some", tmp_path) == written
    assert read("another", tmp_path) is None
    assert names(tmp_path) == ["some"]


def test_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(json.dumps({"figures": {}, "speed": 3}))
    with pytest.raises(ValueError, match=r"some\.json is no result: .*speed"):
        read("some", tmp_path)


@given(before=POSITIVE, now=POSITIVE)
def test_more_of_what_should_be_less_is_worse_and_the_other_way_round(
    before: float, now: float
) -> None:
    less = Ratio("", Figure(before, "ms"), Figure(now, "ms"))
    more = Ratio("", Figure(before, "calls", "more"), Figure(now, "calls", "more"))
    assert less.slower == pytest.approx(now / before)
    assert more.slower == pytest.approx(1 / less.slower)
    assert less.alarming == (now / before > 1.15)


def test_only_figures_of_one_name_and_unit_are_compared() -> None:
    before = result(chunk=Figure(2, "ms"), start=Figure(3, "s"), gone=Figure(1, "ms"))
    now = result(chunk=Figure(3, "ms"), start=Figure(3000, "ms"), new=Figure(1, "ms"))
    assert [(ratio.name, ratio.slower) for ratio in ratios(before, now)] == [("some: chunk", 1.5)]


def test_nothing_is_as_good_as_nothing_and_worse_than_it() -> None:
    none, some = Figure(0.0, "%"), Figure(0.1, "%")
    assert Ratio("", none, none).slower == 1
    assert Ratio("", none, some).alarming
    assert not Ratio("", some, none).alarming
