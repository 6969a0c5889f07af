"""Room for the next callers: the policy by itself, and as Serve really runs it."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.attachments import Terms
from services.runtime.replicas import Replicas, deployment
from services.runtime.scaling import Headroom

KNOBS = Replicas(most=100)


def policy(slots: int = 4, **changes: float) -> Headroom:
    return Headroom(slots=slots, **KNOBS.policy | changes)


def replayed(made: Headroom, sessions: list[int], *, every: float = 1.0) -> list[int]:
    """Decisions second by second, each the next one's target."""
    replicas, decided = 1, []
    for second, count in enumerate(sessions):
        replicas = made.decide(count, replicas=replicas, now=1_000 + second * every)
        decided.append(replicas)
    return decided


@given(
    slots=st.integers(1, 16),
    sessions=st.lists(st.integers(0, 200), min_size=1, max_size=50),
    spare=st.integers(0, 8),
    every=st.floats(0.1, 700),
)
def test_there_is_always_room_for_the_next_caller(
    slots: int, sessions: list[int], spare: int, every: float
) -> None:
    decided = replayed(policy(slots, spare=spare), sessions, every=every)
    for count, replicas in zip(sessions, decided, strict=True):
        assert replicas * slots >= count + spare
        assert replicas * slots * KNOBS.busy >= count or slots == 1 == replicas


@given(st.lists(st.integers(0, 100), min_size=2, max_size=200))
def test_fewer_come_one_by_one_and_none_soon(sessions: list[int]) -> None:
    decided = replayed(policy(), sessions)  # over in less than the quiet time
    assert decided == sorted(decided)


def test_a_quiet_fleet_shrinks_by_steps_to_what_it_needs() -> None:
    decided = replayed(policy(ahead_seconds=0), [40] * 60 + [0] * 1200)
    full = decided[59]
    assert full == 13  # 40 sessions / 0.8 / 4
    assert set(decided[60:600]) == {full}
    falls = [second for second, (a, b) in enumerate(pairwise(decided)) if b < a]
    assert all(b - a >= KNOBS.step_seconds for a, b in pairwise(falls))
    assert decided[-1] == 1


def test_growth_is_followed_for_as_long_as_a_start_takes() -> None:
    rising = [second // 10 for second in range(120)]  # a session more every ten seconds
    behind, ahead = (replayed(policy(1, ahead_seconds=s), rising)[-1] for s in (0, 120))
    assert behind == math.ceil(11 / KNOBS.busy)
    assert ahead >= math.ceil((11 + 11) / KNOBS.busy), "12 more will have come in two minutes"


def test_serve_runs_it() -> None:
    """Ray's own configuration takes it, pickles it for its controller, and asks it."""
    from ray import cloudpickle
    from ray.serve._private.autoscaling_state import _resolve_policy_callable
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingConfig

    options: dict[str, Any] = deployment(KNOBS, Terms(), slots=4)["autoscaling_config"]
    config = AutoscalingConfig(**options)
    arrived = cloudpickle.loads(cloudpickle.dumps(config.policy))  # type: ignore[no-untyped-call]
    asked = _apply_autoscaling_config(_resolve_policy_callable(arrived))

    def decided(sessions: float, replicas: int, now: float) -> int:
        context: Any = SimpleNamespace(
            total_num_requests=sessions,
            current_num_replicas=replicas,
            target_num_replicas=replicas,
            current_time=now,
            policy_state={},
            config=config,
        )
        return int(asked(context)[0])

    assert decided(8.0, 1, 100.0) == 3  # at once; Serve's own delay would have kept 1
    assert decided(0.0, 3, 101.0) == 3
    assert [decided(0.0, 3, now) for now in (690.0, 702.0)] == [3, 2]
    with pytest.raises(ValueError, match="least"):
        Replicas(least=2, most=1)
