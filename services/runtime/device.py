"""The one bridge between the event loop and the device.

On the path: servicer → **device thread** → engine. Everything that touches a model runs on one
thread, one piece at a time, so that the loop never waits for the device and engines need no locks.
A caller that goes away leaves a piece of work that is running alone: a step half done would leave
a session's state torn. Work that has not begun is withdrawn.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Generic, TypeVar, TypeVarTuple

from talkingmachines.errors import EngineFailure, NoCapacity, Unavailable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_SMOOTHING = 0.2  # weight of the newest step in the estimate of a step's length


class DeviceHung(Exception):
    """A step did not end within the time that closing allowed; its thread is left behind."""


@dataclass(frozen=True, slots=True)
class _Result(Generic[T]):
    value: T


@dataclass(frozen=True, slots=True)
class _End:
    """No more results; with an error when the work raised one."""

    error: BaseException | None


@dataclass(frozen=True, slots=True)
class _Stop:
    """The last thing in the inbox; one for all who close."""

    loop: asyncio.AbstractEventLoop
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class _Work(Generic[T]):
    results: Callable[[], Iterator[T]]
    context: contextvars.Context
    loop: asyncio.AbstractEventLoop
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    outbox: asyncio.Queue[_Result[T] | _End] = field(default_factory=asyncio.Queue)
    claimed: bool = False  # by the device thread: it will run, whatever becomes of its caller
    withdrawn: bool = False

    def tell(self, deliver: Callable[..., object], *args: object) -> None:
        _tell(self.loop, deliver, *args)


class DeviceThread:
    """The only thread that touches the device.

    Args:
        name: of the thread, and of the device in messages.
        waiting: pieces of work that may wait; one more is refused.
    """

    def __init__(self, name: str, *, waiting: int) -> None:
        self._name = name
        self._most_waiting = waiting
        self._lock = threading.Lock()  # guards what both threads change
        self._waiting = 0
        self._last_sign: float | None = None  # of the work that is running
        self._busy_seconds = 0.0
        self._step_seconds = 0.1  # smoothed
        self._stop: _Stop | None = None  # once closed
        self._unanswered: set[_Work[Any]] = set()  # only touched on the loop
        self._inbox: queue.SimpleQueue[_Work[Any] | _Stop] = queue.SimpleQueue()
        # A daemon: a device that hangs for good must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)  # noqa: TID251
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pieces of work that have not begun."""
        return self._waiting

    @property
    def busy_seconds(self) -> float:
        """Time spent in work that has ended, since the beginning."""
        return self._busy_seconds

    def stalled_for(self) -> float:
        """Seconds since the running work began or last gave a result; 0 when nothing runs."""
        sign = self._last_sign
        return 0.0 if sign is None else monotonic() - sign

    def hung(self, *, after_seconds: float) -> str | None:
        """What a health check should say: nothing, until a step gave no sign for so long."""
        stalled = self.stalled_for()
        return f"no sign for {stalled:.0f} s" if stalled > after_seconds else None

    async def run(
        self, step: Callable[[*Ts], T], *args: *Ts, begin_within: float | None = None
    ) -> T:
        """What `step(*args)` returns, run on the device thread.

        Args:
            begin_within: seconds that it may wait for its turn; without, as long as it takes.

        Raises:
            NoCapacity: too much is waiting, or its turn did not come in time; it has not run.
            Unavailable: the thread is closed, or did not come to its end when it was.
            EngineFailure: the step raised what would end the process (`SystemExit`).
        """

        def once() -> Iterator[T]:
            yield step(*args)

        async with aclosing(self.stream(once, begin_within=begin_within)) as results:
            async for result in results:
                return result
        raise AssertionError("a step has exactly one result")

    async def stream(
        self, steps: Callable[[*Ts], Iterator[T]], *args: *Ts, begin_within: float | None = None
    ) -> AsyncGenerator[T, None]:
        """The results of the iterator `steps(*args)`, each as soon as it is there.

        The device never waits for a slow consumer: results it has not taken are kept, so an
        iterator must be short (the pictures of one chunk). It is run to its end even when the
        consumer stops before.

        Raises:
            NoCapacity, Unavailable, EngineFailure: as `run`.
        """
        work = _Work(lambda: steps(*args), contextvars.copy_context(), asyncio.get_running_loop())
        self._enqueue(work)
        self._unanswered.add(work)
        try:
            await self._turn(work, begin_within)
            while isinstance(item := await work.outbox.get(), _Result):
                yield item.value
            if item.error is not None:
                raise item.error
        finally:
            self._unanswered.discard(work)
            self._withdraw(work)

    async def close(self, *, within: float) -> None:
        """Refuse new work, withdraw what waits, and let what runs come to its end.

        Raises:
            DeviceHung: it did not, in `within` seconds; whoever waits for it has been told.
        """
        with self._lock:
            if self._stop is None:
                self._stop = _Stop(asyncio.get_running_loop())
                self._inbox.put(self._stop)
        try:
            async with asyncio.timeout(within):
                await self._stop.ended.wait()
        except TimeoutError:
            for work in self._unanswered:
                work.begun.set()
                work.outbox.put_nowait(_End(self._gone()))
            stalled = f"no sign for {self.stalled_for():.1f} s"
            raise DeviceHung(f"{self._name} did not end its step: {stalled}") from None
        self._thread.join()

    def _enqueue(self, work: _Work[T]) -> None:
        with self._lock:
            if self._stop is not None:
                raise self._gone()
            if self._waiting >= self._most_waiting:
                raise self._full()
            self._waiting += 1
        self._inbox.put(work)

    async def _turn(self, work: _Work[T], begin_within: float | None) -> None:
        """Wait until the work begins; one that came too late is withdrawn."""
        try:
            async with asyncio.timeout(begin_within):
                await work.begun.wait()
        except TimeoutError:
            if self._withdraw(work):
                raise self._full() from None

    def _withdraw(self, work: _Work[T]) -> bool:
        """Whether `work` could still be kept from running."""
        with self._lock:
            if not work.claimed and not work.withdrawn:
                work.withdrawn = True
                self._waiting -= 1
        return work.withdrawn

    def _full(self) -> NoCapacity:
        seconds = self._step_seconds * (self._waiting + 1)
        return NoCapacity(self._name, retry_after=round(seconds, 3))

    def _gone(self) -> Unavailable:
        return Unavailable(f"{self._name} is closed", retry_after=1.0)

    # From here on: the device thread.

    def _work(self) -> None:
        while self._next(self._inbox.get()):
            pass

    def _next(self, item: _Work[Any] | _Stop) -> bool:
        """Whether there is more to come. Nothing of `item` is left while the thread waits: its
        arguments may hold much of the device's memory."""
        if isinstance(item, _Stop):
            _tell(item.loop, item.ended.set)
            return False
        if self._claim(item):
            error = self._perform(item) if self._stop is None else self._gone()
            item.tell(item.outbox.put_nowait, _End(error))
        return True

    def _claim(self, work: _Work[Any]) -> bool:
        with self._lock:
            if work.withdrawn:
                return False
            work.claimed = True
            self._waiting -= 1
        work.tell(work.begun.set)
        return True

    def _perform(self, work: _Work[Any]) -> BaseException | None:
        """Run the work to its end; what it raises belongs to its caller."""
        began = self._last_sign = monotonic()
        try:
            work.context.run(self._iterate, work)
        except Exception as error:  # noqa: BLE001  carried over to the caller, who raises it
            return error
        except BaseException as error:  # noqa: BLE001  raised on the loop, it would end the process
            failure = EngineFailure(f"a step on {self._name} raised {type(error).__name__}")
            failure.__cause__ = error
            return failure
        finally:
            self._last_sign = None
            seconds = monotonic() - began
            self._busy_seconds += seconds
            self._step_seconds += _SMOOTHING * (seconds - self._step_seconds)
        return None

    def _iterate(self, work: _Work[Any]) -> None:
        for result in work.results():
            self._last_sign = monotonic()
            work.tell(work.outbox.put_nowait, _Result(result))


def _tell(loop: asyncio.AbstractEventLoop, deliver: Callable[..., object], *args: object) -> None:
    """Call `deliver` on the loop; one that is closed has nobody left to tell."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(deliver, *args)
