"""Carry results from a device to the host while the device goes on with other work.

Stands at the end of both engines' steps: latents and frames leave through here. The CUDA path was
not yet run on a GPU.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch
from torch import Tensor


class Arrival(Protocol):
    """The moment at which a transfer is complete; `torch.cuda.Event` is one."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Link(Protocol):
    """A way from a device to the host."""

    def send(self, tensor: Tensor) -> tuple[Tensor, Arrival]:
        """Begin to copy `tensor`, as it is now, into host memory that nobody else writes."""
        ...


class PendingCopy:
    """A tensor on its way to the host."""

    def __init__(self, host: Tensor, arrival: Arrival) -> None:
        self._host = host
        self._arrival = arrival

    def ready(self) -> bool:
        """Whether `wait` would return at once."""
        return self._arrival.query()

    def wait(self) -> Tensor:
        """The tensor in host memory. It belongs to the caller: nothing overwrites it later."""
        self._arrival.synchronize()
        return self._host


class HostCopies:
    """Copies from one device to the host, in order, at most `in_flight` at a time.

    `start` returns at once; the tensor given may be overwritten as soon as it has returned (a
    recorded step does so). When `in_flight` copies have not arrived, `start` waits for the
    oldest, so that a slow host cannot pile up pinned memory.
    """

    def __init__(
        self, device: torch.device, *, in_flight: int = 4, link: Link | None = None
    ) -> None:
        if in_flight < 1:
            raise ValueError(f"in_flight: expected at least 1, got {in_flight}")
        self._link = link if link is not None else link_for(device)
        self._in_flight = in_flight
        self._pending: deque[PendingCopy] = deque()

    def start(self, tensor: Tensor) -> PendingCopy:
        """Begin to copy `tensor`; same shape and dtype on the host, contiguous."""
        while self._pending and self._pending[0].ready():
            self._pending.popleft()
        if len(self._pending) == self._in_flight:
            self._pending.popleft().wait()
        copy = PendingCopy(*self._link.send(tensor))
        self._pending.append(copy)
        return copy


class CudaLink:
    """Pinned memory, on a stream of its own.

    Buffers come from PyTorch's cache of pinned memory, which takes a buffer back when its last
    reader has dropped it and no stream still writes it. A ring of our own would have to guess.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tensor: Tensor) -> tuple[Tensor, Arrival]:
        # A copy inside the device takes microseconds and lets the next step overwrite `tensor`
        # without waiting for the slow way to the host.
        staged = tensor.clone(memory_format=torch.contiguous_format)
        host = torch.empty(staged.shape, dtype=staged.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(staged, non_blocking=True)
            staged.record_stream(self._stream)
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrival.record(self._stream)
        return host, arrival


class HostLink:
    """The device is the host: the copy is complete when it is made."""

    def send(self, tensor: Tensor) -> tuple[Tensor, Arrival]:
        host = torch.empty(tensor.shape, dtype=tensor.dtype)
        host.copy_(tensor)
        return host, _Arrived()


class _Arrived:
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None


def link_for(device: torch.device) -> Link:
    """The way from `device` to the host."""
    return CudaLink(device) if device.type == "cuda" else HostLink()
