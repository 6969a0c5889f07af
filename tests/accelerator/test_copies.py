"""What leaves a device is what it was when it left, and stays so."""

import pytest
import torch
from torch import Tensor

from services.accelerator.copies import Arrival, HostCopies

CPU = torch.device("cpu")


class Flag:
    """An arrival under the test's control."""

    def __init__(self) -> None:
        self.arrived = False
        self.waited = False

    def query(self) -> bool:
        return self.arrived

    def synchronize(self) -> None:
        self.waited = self.arrived = True


class SlowLink:
    def __init__(self) -> None:
        self.flags: list[Flag] = []

    def send(self, tensor: Tensor) -> tuple[Tensor, Arrival]:
        self.flags.append(Flag())
        return tensor.clone(), self.flags[-1]


def test_a_copy_outlives_what_happens_to_its_source() -> None:
    copies = HostCopies(CPU)
    frame = torch.arange(6.0).view(2, 3)
    kept = []
    for step in range(20):
        frame.fill_(step)
        kept.append(copies.start(frame).wait())
    assert [copy[0, 0].item() for copy in kept] == list(range(20))


def test_a_view_arrives_contiguous() -> None:
    source = torch.arange(6).view(2, 3).T
    host = HostCopies(CPU).start(source).wait()
    assert host.is_contiguous()
    assert torch.equal(host, source)


def test_start_waits_for_the_oldest_when_too_many_are_in_flight() -> None:
    link = SlowLink()
    copies = HostCopies(CPU, in_flight=2, link=link)
    pending = [copies.start(torch.zeros(1)) for _ in range(3)]
    assert [flag.waited for flag in link.flags] == [True, False, False]
    assert [copy.ready() for copy in pending] == [True, False, False]


def test_start_does_not_wait_when_copies_have_arrived() -> None:
    link = SlowLink()
    copies = HostCopies(CPU, in_flight=1, link=link)
    for _ in range(3):
        copies.start(torch.zeros(1))
        link.flags[-1].arrived = True
    assert not any(flag.waited for flag in link.flags)


def test_wait_synchronises_with_the_copy() -> None:
    link = SlowLink()
    pending = HostCopies(CPU, link=link).start(torch.ones(2))
    assert not pending.ready()
    assert pending.wait().tolist() == [1.0, 1.0]
    assert link.flags[0].waited


def test_nonsense_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        HostCopies(CPU, in_flight=0)
