"""A loop whose clock jumps to the next timer, so that nothing is ever waited for."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tests.virtual_time import VirtualLoop, VirtualSelector, run_virtual

T = TypeVar("T")


class _Blind(VirtualSelector):
    """Nothing outside the process is waited for, so no file is ever looked at."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and no timer will wake anyone")
        self.now += max(0.0, timeout)
        return []


class _AtOnce(ThreadPoolExecutor):
    """Runs what is submitted there and then: a thread would live in another time."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  whoever awaits it is told
            done.set_exception(error)
        return done


def _loop() -> VirtualLoop:
    loop = VirtualLoop(_Blind())
    loop.set_default_executor(_AtOnce(1))
    return loop


def run_simulated(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time, in which threads and files take none."""
    return run_virtual(main, _loop)
