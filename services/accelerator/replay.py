"""Run a fixed-shape function as one recorded launch.

A denoising step is some thousand kernels; launching each from Python costs more than a small model
computes. `Replay` wraps such a function from outside: the model does not know. Devices without
graphs call straight through. The CUDA path was not yet run on a GPU; `Rerun` runs the same logic
of static buffers on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]
Step = Callable[..., Outputs]

_WARM_UPS = 3  # libraries choose algorithms and allocate workspaces in the first calls


class InputChanged(ValueError):
    """An input has another shape, dtype or device than the one that was recorded."""

    def __init__(self, index: int, *, got: Tensor, expected: Tensor) -> None:
        wanted, came = _describe(expected), _describe(got)
        super().__init__(f"input {index} of a recorded step: expected {wanted}, got {came}")
        self.index = index


class Capture(Protocol):
    """How a device records a function of no arguments, which reads and writes fixed memory."""

    def warm_up(self, function: Callable[[], Outputs], times: int) -> None:
        """Call `function` `times` times, apart from other work on the device."""
        ...

    def record(self, function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """What repeats `function` in place, and the memory its results will appear in.

        The results are valid only after the first repetition.
        """
        ...


class Replay:
    """A step with fixed shapes, recorded on its first call and repeated on every later one.

    - Results are overwritten by the next call: copy what must outlive it.
    - All inputs are tensors and are copied into static memory on each call. Memory that the step
      closes over (weights, caches) is used in place and must stay where it is.
    - The step runs `warm_ups` more times on the first call, so writing caches must be idempotent:
      the same inputs write the same places with the same values.
    - The step may not look at values on the host (`.item()`, `if tensor:`).

    Without a `capture` it is the step itself, with fresh results on every call; the check of
    shapes stays, so that a CPU test finds what would fail on a GPU.

    Raises:
        InputChanged: from a call whose inputs differ from the first in shape, dtype or device.
        TypeError: from a call with another number of inputs than the first.
    """

    def __init__(self, step: Step, capture: Capture | None, *, warm_ups: int = _WARM_UPS) -> None:
        self._step = step
        self._capture = capture
        self._warm_ups = warm_ups
        self._inputs: tuple[Tensor, ...] | None = None
        self._repeat: Callable[[], None] | None = None
        self._outputs: Outputs = ()

    def __call__(self, *inputs: Tensor) -> Outputs:
        if self._inputs is None:
            self._begin(inputs)
        else:
            _check(inputs, self._inputs)
        if self._repeat is None or self._inputs is None:
            return self._step(*inputs)
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given)
        self._repeat()
        return self._outputs

    def _begin(self, inputs: tuple[Tensor, ...]) -> None:
        if self._capture is None:
            # Shapes alone: holding the caller's tensors would keep their memory.
            self._inputs = tuple(_shape_of(given) for given in inputs)
            return
        static = tuple(given.clone() for given in inputs)
        run = lambda: self._step(*static)
        self._capture.warm_up(run, self._warm_ups)
        self._repeat, self._outputs = self._capture.record(run)
        self._inputs = static


class CudaGraphs:
    """Records CUDA graphs, all in one memory pool.

    One pool is safe because one thread replays graphs one after another and every graph's results
    are held by its `Replay`; what they share is scratch memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Outputs], times: int) -> None:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(times):
                function()
        current.wait_stream(self._stream)

    def record(self, function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may allocate pinned memory meanwhile without breaking this.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            outputs = function()
        return graph.replay, outputs


class Rerun:
    """Repeats by calling again, with a graph's manners: fixed memory in, fixed memory out.

    Shows on any device whether a step can live with static buffers and overwritten results.
    """

    def warm_up(self, function: Callable[[], Outputs], times: int) -> None:
        for _ in range(times):
            function()

    def record(self, function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        outputs = function()
        held = _as_tuple(outputs)

        def repeat() -> None:
            for static, fresh in zip(held, _as_tuple(function()), strict=True):
                static.copy_(fresh)

        return repeat, outputs


def capture_for(device: torch.device) -> Capture | None:
    """How `device` records steps, or None where it cannot."""
    return CudaGraphs(device) if device.type == "cuda" else None


def _check(inputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    if len(inputs) != len(expected):
        raise TypeError(f"a recorded step: expected {len(expected)} inputs, got {len(inputs)}")
    for index, (got, static) in enumerate(zip(inputs, expected, strict=True)):
        same_device = static.is_meta or got.device == static.device
        if got.shape != static.shape or got.dtype != static.dtype or not same_device:
            raise InputChanged(index, got=got, expected=static)


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _describe(tensor: Tensor) -> str:
    place = "" if tensor.is_meta else f" on {tensor.device}"
    return f"{list(tensor.shape)} {tensor.dtype}{place}"
