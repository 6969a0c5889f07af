"""The choice of dtype follows measured time, and precision wins ties."""

from collections.abc import Callable

import pytest
import torch

from services.accelerator.dtype import fastest_dtype

CPU = torch.device("cpu")
BOTH = (torch.float32, torch.bfloat16)


class Stopwatch:
    """A clock that work moves on by itself."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[torch.dtype] = []

    def __call__(self) -> float:
        return self.now

    def trial(
        self, seconds: dict[torch.dtype, list[float]]
    ) -> Callable[[torch.dtype], Callable[[], object]]:
        def prepare(dtype: torch.dtype) -> Callable[[], object]:
            self.now += 1000.0  # preparing is not timed
            durations = iter(seconds[dtype])

            def work() -> None:
                self.calls.append(dtype)
                self.now += next(durations)

            return work

        return prepare


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [
        (2.4, 1.0, torch.bfloat16),
        (1.0, 3.0, torch.float32),
        (1.0, 1.0, torch.float32),
        (1.0, 0.95, torch.float32),  # not clearly faster
    ],
)
def test_the_clearly_faster_dtype_wins(
    float32: float, bfloat16: float, expected: torch.dtype
) -> None:
    clock = Stopwatch()
    trial = clock.trial({torch.float32: [float32] * 9, torch.bfloat16: [bfloat16] * 9})
    assert fastest_dtype(CPU, BOTH, trial, clock=clock) == expected


def test_slow_first_calls_and_one_disturbed_run_do_not_count() -> None:
    clock = Stopwatch()
    disturbed = [50.0, 50.0, 1.0, 1.0, 80.0, 1.0, 1.0]
    trial = clock.trial({torch.float32: [2.0] * 7, torch.bfloat16: disturbed})
    assert fastest_dtype(CPU, BOTH, trial, clock=clock) == torch.bfloat16
    assert len(clock.calls) == 14


def test_an_accelerator_and_a_single_candidate_are_not_timed() -> None:
    clock = Stopwatch()
    trial = clock.trial({})
    assert fastest_dtype(torch.device("cuda"), BOTH, trial, clock=clock) == torch.bfloat16
    assert fastest_dtype(torch.device("cuda"), BOTH[:1], trial, clock=clock) == torch.float32
    assert fastest_dtype(CPU, BOTH[1:], trial, clock=clock) == torch.bfloat16
    assert clock.calls == []


def test_no_candidates_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one dtype"):
        fastest_dtype(CPU, (), lambda _: lambda: None)


def test_a_real_trial_runs_in_the_candidates() -> None:
    def trial(dtype: torch.dtype) -> Callable[[], object]:
        weight = torch.ones(8, 8, dtype=dtype)
        return lambda: weight @ weight

    assert fastest_dtype(CPU, BOTH, trial) in BOTH
