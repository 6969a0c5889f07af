"""Locust's users around our callers: when they come, and what they saw, in its statistics and page.

Locust is gevent, the client is grpc.aio, and the two do not mix: a standard library that gevent has
patched hangs asyncio's and gRPC's threads. So nothing is patched, Locust and its greenlets have the
main thread, and asyncio has one native thread, in which all that belongs to calls happens. A user's
greenlet hands its call over there and sleeps until that thread wakes it: two loops, one bridge.
"""

from __future__ import annotations

import asyncio
import os
import signal
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("LOCUST_SKIP_MONKEY_PATCH", "1")  # Locust patches when it is imported

import gevent
from gevent.event import AsyncResult, Event
from locust import LoadTestShape, User, task
from locust.env import Environment

from loadtest.arrivals import Arrival, arrivals
from loadtest.book import Book
from loadtest.caller import call
from loadtest.measures import Measure
from loadtest.scenario import Scenario
from loadtest.stage import Stage, memory_samples, stage
from talkingmachines.cli.server import Server

T = TypeVar("T")

_AHEAD_SECONDS = 2.0  # that users are there before they ring: Locust makes them once a second
_POLL_SECONDS = 0.5
_FOREVER = 10**9
# What is a time that Locust's statistics can show, as if it were a request's.
_TIMES = (
    Measure.FIRST_FRAME,
    Measure.ANSWER,
    Measure.STALLS,
    Measure.RECONNECTS,
    Measure.INTERRUPTED,
)
_FAILURES = (Measure.REFUSALS, Measure.ERRORS, Measure.FAULTS_OF_OURS, Measure.CROSS_TALK)


class Interrupted(Exception):
    """Somebody stopped the run before its end."""


def run(
    scenario: Scenario,
    server: Server,
    *,
    speech: Path,
    progress: Callable[[Book], None] = lambda _: None,
    web_port: int | None = None,
) -> tuple[Book, bool]:
    """The whole of a scenario.

    Args:
        speech: folder with recordings that callers speak.
        progress: called twice a second.
        web_port: for Locust's own page, on loopback.

    Returns:
        What happened, and whether it came to its end without being stopped.

    Raises:
        TalkingMachinesError: the fleet does not answer, or is no more.
        BadInput: the scenario cannot be done there.
        Interrupted: it was stopped before there was anything to report.
    """
    ready, end = Future[Stage](), Future[None]()
    with _signals() as stopped:
        other = _asyncio_side(scenario, server, speech, ready, end)
        side = gevent.get_hub().threadpool.spawn(_native, other)
        whole = False
        try:
            _until(_woken(ready), side, stopped)
            if ready.done():
                whole = _swarm(scenario, ready.result(), side, stopped, progress, web_port)
        finally:
            end.set_result(None)
            wrong = side.get()
    if wrong is not None:
        raise wrong
    if not ready.done():
        raise Interrupted("stopped before there was a fleet")
    return ready.result().desk.book, whole


def _swarm(
    scenario: Scenario,
    ready: Stage,
    side: AsyncResult,
    stopped: Event,
    progress: Callable[[Book], None],
    web_port: int | None,
) -> bool:
    """Locust's part; returns whether all of it was done."""
    desk, loop = ready.desk, ready.loop
    book = desk.book
    coming = arrivals(scenario)
    environment = Environment(
        user_classes=[_users(coming, ready)],
        shape_class=_Shape(scenario, coming, book),
        stop_timeout=scenario.farewell_seconds,
    )
    environment.events.test_stopping.add_listener(
        lambda **_: loop.call_soon_threadsafe(desk.over.set)
    )
    runner = environment.create_local_runner()
    web = None if web_port is None else environment.create_web_ui("127.0.0.1", web_port)
    book.begin()
    loop.call_soon_threadsafe(desk.begun.set)
    runner.start_shape()
    telling = gevent.spawn(_tell, book, environment, progress)
    try:
        _until(runner.shape_greenlet, side, stopped)
    finally:
        runner.quit()
        telling.kill()
        if web is not None:
            web.stop()
    return not stopped.is_set() and not side.ready()


def _native(what: Coroutine[Any, Any, None]) -> BaseException | None:
    """Run what belongs to the other thread; returns what went wrong instead of raising it there,
    where gevent would print it.
    """
    try:
        asyncio.run(what)
    except Exception as error:  # noqa: BLE001  raised where it is waited for
        return error
    return None


async def _asyncio_side(
    scenario: Scenario,
    server: Server,
    speech: Path,
    ready: Future[Stage],
    end: Future[None],
) -> None:
    """What the native thread runs, until the other side has brought its last caller."""
    ended = asyncio.wrap_future(end)
    running = asyncio.create_task(_hold(scenario, server, speech, ready, ended))
    await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        running.cancel()  # it was stopped while a fleet was starting
    await asyncio.wait({running})
    if not running.cancelled():
        running.result()


async def _hold(
    scenario: Scenario,
    server: Server,
    speech: Path,
    ready: Future[Stage],
    ended: asyncio.Future[None],
) -> None:
    async with stage(scenario, server, speech=speech) as made:
        ready.set_result(made)
        await _first(made.desk.begun.wait(), ended)
        beside = asyncio.create_task(made.run(scenario))
        await asyncio.wait({beside, ended}, return_when=asyncio.FIRST_COMPLETED)
        beside.cancel()
        await asyncio.wait({beside})
        if not beside.cancelled():
            beside.result()
        made.desk.book.samples += memory_samples(made.desk.book)


async def _first(what: Coroutine[Any, Any, Any], other: asyncio.Future[None]) -> None:
    task = asyncio.create_task(what)
    await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()


class _Shape(LoadTestShape):
    """How many callers there have been: never less, so Locust stops none before the end."""

    def __init__(self, scenario: Scenario, coming: list[Arrival], book: Book) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seconds = scenario.seconds
        self._times = [arrival.at for arrival in coming]
        self._book = book

    def tick(self) -> tuple[int, float] | None:
        now = self._book.now
        if now >= self._seconds:
            return None
        due = bisect_right(self._times, now + _AHEAD_SECONDS)
        return due, max(1, due)  # all of them at once: each waits for its own moment


def _users(coming: list[Arrival], ready: Stage) -> type[User]:
    """The class of users; each takes the next arrival, holds that one call and rings no more."""
    following = iter(coming)
    desk, loop = ready.desk, ready.loop

    class Caller(User):
        def wait_time(self) -> float:
            # A user that ended would be replaced by another; one that waits costs a few KB.
            return _FOREVER

        @task
        def hold(self) -> None:
            arrival = next(following, None)
            if arrival is None:
                return
            while (early := arrival.at - desk.book.now) > 0:
                if desk.over.is_set():
                    return
                gevent.sleep(min(early, _POLL_SECONDS))
            _across(call(arrival, desk), loop)

    return Caller


def _tell(book: Book, environment: Environment, progress: Callable[[Book], None]) -> None:
    """Samples into Locust's statistics, as they come."""
    told = 0
    while True:
        gevent.sleep(_POLL_SECONDS)
        new = book.samples[told:]
        told += len(new)
        for sample in new:
            failed = sample.measure in _FAILURES
            if not failed and sample.measure not in _TIMES:
                continue
            environment.events.request.fire(
                request_type="Talk",
                name=str(sample.measure),
                response_time=0.0 if failed else 1000 * sample.value,
                response_length=0,
                exception=RuntimeError(str(sample.measure)) if failed else None,
            )
        progress(book)


# ---- The bridge between the two loops ----


def _across(what: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """The result of a coroutine of the other thread; only the greenlet that asks waits."""
    future = asyncio.run_coroutine_threadsafe(what, loop)
    try:
        _woken(future).wait()
        return future.result()
    finally:
        future.cancel()  # where the greenlet was killed meanwhile


def _woken(future: Future[Any]) -> Event:
    """An event of this thread for the end of something in the other."""
    done = Event()
    watcher = gevent.get_hub().loop.async_()

    def wake() -> None:
        watcher.stop()
        done.set()

    watcher.start(wake)
    future.add_done_callback(lambda _: watcher.send_ignoring_arg(None))
    return done


def _until(*what: Any) -> None:
    """Wait for the first of several."""
    gevent.wait([one for one in what if one is not None], count=1)


@contextmanager
def _signals() -> Iterator[Event]:
    """Set by Ctrl-C and SIGTERM."""
    stopped = Event()
    handlers = [gevent.signal_handler(one, stopped.set) for one in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield stopped
    finally:
        for handler in handlers:
            handler.cancel()
