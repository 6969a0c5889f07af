"""Deadlines first, batches where they gain, and no session too many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.score.schedule import Costs, Ready, admits, load, pick


def costs(seconds: dict[int, float]) -> Costs:
    made = Costs()
    for rows, each in seconds.items():
        made.record(rows, each)
    return made


def ready(*deadlines: float, shape: object = "same") -> list[Ready]:
    return [Ready(f"s{n}", deadline, str(shape)) for n, deadline in enumerate(deadlines)]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.integers(1, 4))
def test_the_most_urgent_is_always_drawn(deadlines: list[float], most: int) -> None:
    chosen = pick(ready(*deadlines), costs({1: 1, 2: 1.5, 3: 2, 4: 2.5}), now=0, most=most)
    assert chosen[0].deadline == min(deadlines)
    assert len(chosen) <= most
    assert [one.deadline for one in chosen] == sorted(one.deadline for one in chosen)


def test_a_batch_forms_where_it_was_measured_to_gain() -> None:
    items = ready(10, 11, 12)
    assert len(pick(items, costs({1: 1, 2: 1.5, 3: 1.8}), now=0, most=3)) == 3
    assert len(pick(items, costs({1: 1, 2: 2.1, 3: 3.3}), now=0, most=3)) == 1
    assert len(pick(items, costs({1: 1, 2: 1.5, 3: 3.3}), now=0, most=3)) == 2


def test_a_batch_that_was_never_tried_is_tried() -> None:
    assert len(pick(ready(10, 11), costs({1: 1}), now=0, most=2)) == 2


def test_company_may_not_make_the_first_late() -> None:
    items, known = ready(1.2, 5), costs({1: 1, 2: 1.5})
    assert len(pick(items, known, now=0, most=2)) == 1
    assert len(pick(items, known, now=0.5, most=2)) == 2, "late anyway: lose no throughput"


def test_other_shapes_do_not_share_a_batch() -> None:
    items = [Ready("a", 1, 1), Ready("b", 2, 2), Ready("c", 3, 1)]
    chosen = pick(items, costs({1: 0.1, 2: 0.1, 3: 0.1}), now=0, most=3)
    assert [one.session for one in chosen] == ["a", "c"]


def test_load_counts_batches_and_what_is_left_over() -> None:
    known = costs({1: 0.4, 2: 0.6})
    assert load(3, known, period=1.0, most=2) == pytest.approx(1.0)
    assert load(3, known, period=1.0, most=1) == pytest.approx(1.2)
    assert not admits(load(3, known, period=1.0, most=2))
    assert admits(load(2, known, period=1.0, most=2))


def test_before_anything_was_measured_everybody_is_let_in() -> None:
    assert admits(load(5, Costs(), period=0.5, most=4))


def test_measurements_are_a_running_mean() -> None:
    known = costs({1: 1.0})
    known.record(1, 2.0)
    assert known.seconds(1) == pytest.approx(1.2)
    assert known.seconds(3) == pytest.approx(3.6)
