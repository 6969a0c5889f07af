"""The model of arrangements obeys what any machine must."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.fleet_model import (
    INPUTS,
    Load,
    assumed,
    disaggregated,
    estimates,
    self_contained,
)
from services.score.floor import chunk_floor

SIDES = (512, 720)


@pytest.fixture(scope="module", params=SIDES, ids=str)
def load(request: pytest.FixtureRequest) -> Load:
    return Load.of(request.param)


def test_at_full_use_of_one_device_a_chunk_takes_its_arithmetic(load: Load) -> None:
    given = replace(assumed("middle"), dit_share=1.0, vae_share=1.0)
    whole = (chunk_floor(load.config) + load.vae_flops) / given.rate
    assert self_contained(load, given, 1, parallel=False).period == pytest.approx(whole)


def test_one_rank_is_no_parallelism(load: Load) -> None:
    given = assumed("middle")
    assert self_contained(load, given, 1, parallel=True) == self_contained(
        load, given, 1, parallel=False
    )
    assert disaggregated(load, given, 1, parallel=False) is None


def test_apart_neither_waits_for_the_other_and_the_way_costs_latency(load: Load) -> None:
    given = assumed("middle")
    both = self_contained(load, given, 2, parallel=False)
    apart = disaggregated(load, given, 2, parallel=False)
    assert apart is not None
    denoise, context = load.drawing(given, 1)
    assert apart.period == max(denoise + context, load.decoding(given)) < both.period
    assert apart.latency == pytest.approx(both.latency + given.way)


def test_more_ranks_are_faster_and_never_by_more_than_their_number(load: Load) -> None:
    given = assumed("middle")
    alone, *more = [sum(load.drawing(given, ranks)) for ranks in (1, 2, 4, 8)]
    for ranks, seconds in zip((2, 4, 8), more, strict=True):
        assert alone / ranks < seconds < alone


@pytest.mark.parametrize("side", SIDES)
def test_the_ends_of_the_inputs_enclose_their_middle(side: int) -> None:
    ends = (estimates(side, end) for end in ("high", "middle", "low"))
    for (_, _, fast), (_, _, middle), (_, _, slow) in zip(*ends, strict=True):
        if fast is not None:
            assert middle is not None
            assert slow is not None
            assert fast.latency < middle.latency < slow.latency
            assert fast.period < middle.period < slow.period


def test_every_input_says_where_it_is_from() -> None:
    assert all(given.source and given.unit for given in INPUTS.values())
    assert {name for name, given in INPUTS.items() if given.measured} == {"GPU", "way"}
