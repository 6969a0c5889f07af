"""A recorded step gives what the step gives, from memory that does not move."""

import pytest
import torch
from torch import Tensor

from services.accelerator.replay import InputChanged, Outputs, Replay, Rerun, capture_for


class Step:
    """Writes its input into a cache it owns and returns two results; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen: list[int] = []
        self.cache = torch.zeros(2, 3)

    def __call__(self, x: Tensor, row: Tensor) -> Outputs:
        self.calls += 1
        self.seen.append(x.data_ptr())
        self.cache.index_copy_(0, row, x[None])
        return x * 2, self.cache.sum(dim=0)


def inputs(value: float, row: int) -> tuple[Tensor, Tensor]:
    return torch.full((3,), value), torch.tensor([row])


@pytest.mark.parametrize("recorded", [False, True], ids=["call-through", "recorded"])
def test_results_and_caches_equal_the_plain_step(recorded: bool) -> None:
    plain, wrapped = Step(), Step()
    replay = Replay(wrapped, Rerun() if recorded else None)
    for value, row in [(1.0, 0), (2.0, 1), (3.0, 0), (4.0, 1)]:
        expected = plain(*inputs(value, row))
        got = replay(*inputs(value, row))
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(wrapped.cache, plain.cache)


def test_a_single_result_stays_a_single_tensor() -> None:
    replay = Replay(lambda x: x + 1, Rerun())
    for value in (1.0, 2.0):
        got = replay(torch.tensor([value]))
        assert isinstance(got, Tensor)
        assert got.item() == value + 1


def test_the_step_reads_static_memory_and_writes_static_results() -> None:
    step = Step()
    replay = Replay(step, Rerun())
    first = replay(*inputs(1.0, 0))
    kept = first[0].clone()
    given = inputs(5.0, 0)
    second = replay(*given)
    assert [a.data_ptr() for a in first] == [b.data_ptr() for b in second]
    assert not torch.equal(first[0], kept)  # overwritten, as documented
    assert len(set(step.seen)) == 1
    assert given[0].data_ptr() not in step.seen


def test_call_through_gives_fresh_results() -> None:
    replay = Replay(Step(), None)
    first = replay(*inputs(1.0, 0))[0]
    replay(*inputs(5.0, 0))
    assert first.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("warm_ups", [0, 3])
def test_warm_up_happens_once_before_recording(warm_ups: int) -> None:
    step = Step()
    replay = Replay(step, Rerun(), warm_ups=warm_ups)
    replay(*inputs(1.0, 0))
    assert step.calls == warm_ups + 2  # + the recording and its first repetition
    replay(*inputs(1.0, 0))
    assert step.calls == warm_ups + 3


@pytest.mark.parametrize("recorded", [False, True], ids=["call-through", "recorded"])
def test_changed_inputs_are_refused_with_both_shapes(recorded: bool) -> None:
    replay = Replay(Step(), Rerun() if recorded else None)
    replay(*inputs(1.0, 0))
    with pytest.raises(InputChanged, match=r"input 0 .*\[3\] torch.float32.*\[4\] torch.float32"):
        replay(torch.zeros(4), torch.tensor([0]))
    with pytest.raises(InputChanged, match=r"input 0 .*torch.float64"):
        replay(torch.zeros(3, dtype=torch.float64), torch.tensor([0]))
    with pytest.raises(TypeError, match="expected 2 inputs, got 1"):
        replay(torch.zeros(3))
    replay(*inputs(2.0, 1))  # a refused call leaves the step usable


def test_a_device_without_graphs_calls_through() -> None:
    assert capture_for(torch.device("cpu")) is None
