"""Many calls in virtual time: what must hold at any size, at a small one."""

from __future__ import annotations

from benchmarks.scale import scenarios
from benchmarks.scale.clock import run_simulated


def test_calls_that_go_on_cost_redis_a_write_a_chunk_and_nobody_a_stall() -> None:
    found = run_simulated(scenarios.steady(16, 6.0, within=3.0))
    assert found["ended"] == {}
    assert found["stalls"]["callers_with_any"] == 0
    by_operation = found["redis"]["by_operation"]
    chunks_per_second = 16 / 0.75
    assert 0.8 < by_operation["lease.write"]["per_second"] / chunks_per_second < 1.2
    gateways = found["fleet"]["gateways"]
    assert 0.8 < by_operation["replicas.seen"]["per_second"] / gateways < 1.2


def test_a_crowd_gets_every_place_in_turn_and_none_that_there_is_not() -> None:
    found = run_simulated(scenarios.crowd(48, 16, gateways=3, call_seconds=4.0))
    assert found["ended"] == {}
    assert found["most_at_once"] <= found["places"] == 16
    assert found["overtaken"] == 0
    assert found["sessions_while_somebody_waits"]["mean"] > 0.65


def test_a_lost_zone_ends_nobody_while_the_others_have_room() -> None:
    lost = scenarios.zone_lost(12, silent=False, within=2.0, before=4.0, after=12.0)
    found = run_simulated(lost)
    assert found["sessions"] == 12
    assert found["ended"] == {}
    assert found["resumed_at_another_gateway"] > 0
    assert found["stalls"]["seconds_per_caller"]["most"] < 3
