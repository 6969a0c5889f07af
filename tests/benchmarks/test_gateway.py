"""The benchmark of the gateway holds real calls, and counts what they cost."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gateway import figures, measured
from benchmarks.synthetic import FULL_SIZE


async def test_two_calls_are_served_and_counted() -> None:
    quick = replace(FULL_SIZE, score_seconds=0.05, vae_seconds=0.01)
    row = await measured(2, 2.0, quick)
    assert row["sessions"] == 2
    assert 0.5 < row["frames_of_wanted"] < 1.5  # a machine that is busy holds pictures
    assert 0 < row["event_loop_cores"] <= row["gateway_cores"] < 2
    assert row["gateway_mib"] > row["empty_mib"] > 50
    found = figures([row, replace_sessions(row)])
    assert found["sessions per core"].value == row["sessions_per_core"]


def replace_sessions(row: dict[str, float]) -> dict[str, float]:
    """A smaller run: the largest one counts."""
    return row | {"sessions": 1, "sessions_per_core": 0.0}
