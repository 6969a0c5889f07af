"""The bridge between the event loop and the device thread."""

import asyncio
import contextvars
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.device import DeviceHung, DeviceThread
from talkingmachines.errors import BadInput, EngineFailure, NoCapacity, Unavailable


@asynccontextmanager
async def device(waiting: int = 8) -> AsyncIterator[DeviceThread]:
    thread = DeviceThread("device", waiting=waiting)
    try:
        yield thread
    finally:
        await thread.close(within=2.0)


class Gate:
    """A step that runs until the test lets it end."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.release = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> str:
        self.running.set()
        assert self.release.wait(5)
        self.ended.set()
        return "done"

    async def has_begun(self) -> None:
        async with asyncio.timeout(2):
            while not self.running.is_set():  # noqa: ASYNC110  a thread's event
                await asyncio.sleep(0.001)


async def test_steps_run_on_one_thread_that_is_not_the_loop_s() -> None:
    async with device() as gpu:
        names = await asyncio.gather(
            *(gpu.run(lambda: threading.current_thread().ident) for _ in range(8))
        )
    assert len(set(names)) == 1
    assert names[0] != threading.current_thread().ident


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=12))
def test_every_piece_of_work_runs_once_in_order_unless_withdrawn(
    plan: list[tuple[bool, int]],
) -> None:
    """Whatever callers do, results come in order, and what had begun ends."""
    begun: list[int] = []
    ended: list[int] = []

    def steps(n: int, count: int) -> Iterator[int]:
        begun.append(n)
        yield from range(count)
        ended.append(n)

    async def consume(gpu: DeviceThread, n: int, count: int) -> list[int]:
        async with aclosing(gpu.stream(steps, n, count)) as results:
            return [result async for result in results]

    async def drive() -> None:
        async with device(waiting=len(plan) + 1) as gpu:
            tasks = [
                asyncio.create_task(consume(gpu, n, count)) for n, (_, count) in enumerate(plan)
            ]
            await asyncio.sleep(0)
            for task, (cancelled, _) in zip(tasks, plan, strict=True):
                if cancelled:
                    task.cancel()
            for task, (cancelled, count) in zip(tasks, plan, strict=True):
                if cancelled:
                    with suppress(asyncio.CancelledError):
                        await task
                else:
                    assert await task == list(range(count))
        assert gpu.waiting == 0

    asyncio.run(drive())
    assert begun == ended == sorted(begun)
    assert set(begun) >= {n for n, (cancelled, _) in enumerate(plan) if not cancelled}


async def test_a_cancelled_caller_does_not_stop_a_step_that_runs() -> None:
    gate = Gate()
    async with device() as gpu:
        caller = asyncio.create_task(gpu.run(gate))
        await gate.has_begun()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert not gate.ended.is_set()
        gate.release.set()
        assert await gpu.run(gate.ended.is_set)


async def test_a_consumer_that_leaves_does_not_stop_the_rest_of_its_work() -> None:
    seen: list[int] = []

    def steps() -> Iterator[int]:
        for n in range(5):
            seen.append(n)
            yield n

    async with device() as gpu:
        async with aclosing(gpu.stream(steps)) as results:
            assert await anext(results) == 0
        assert await gpu.run(lambda: list(seen)) == [0, 1, 2, 3, 4]


async def test_results_arrive_before_the_work_has_ended() -> None:
    gate = Gate()

    def latents_then_context_pass() -> Iterator[str]:
        yield "latents"
        gate()

    async with device() as gpu:
        async with aclosing(gpu.stream(latents_then_context_pass)) as results:
            assert await anext(results) == "latents"
            assert not gate.ended.is_set()
            gate.release.set()
            assert [result async for result in results] == []
        assert gate.ended.is_set()


async def test_too_much_waiting_work_is_refused_at_once_with_a_time_to_retry() -> None:
    gate = Gate()
    async with device(waiting=2) as gpu:
        running = asyncio.create_task(gpu.run(gate))
        await gate.has_begun()
        waiting = [asyncio.create_task(gpu.run(lambda: "waited")) for _ in range(2)]
        await asyncio.sleep(0)
        assert gpu.waiting == 2
        with pytest.raises(NoCapacity) as refused:
            await gpu.run(lambda: "one too many")
        assert refused.value.retry_after > 0
        gate.release.set()
        assert await running == "done"
        assert await asyncio.gather(*waiting) == ["waited"] * 2


async def test_work_whose_turn_does_not_come_in_time_never_runs() -> None:
    gate = Gate()
    ran = False

    def late() -> None:
        nonlocal ran
        ran = True

    async with device() as gpu:
        running = asyncio.create_task(gpu.run(gate))
        await gate.has_begun()
        with pytest.raises(NoCapacity):
            await gpu.run(late, begin_within=0.05)
        assert gpu.waiting == 0
        gate.release.set()
        await running
        assert await gpu.run(lambda: "next") == "next"
    assert not ran


async def test_the_time_to_begin_does_not_limit_what_has_begun() -> None:
    gate = Gate()
    async with device() as gpu:
        running = asyncio.create_task(gpu.run(gate, begin_within=0.05))
        await asyncio.sleep(0.1)
        gate.release.set()
        assert await running == "done"


async def test_what_a_step_raises_reaches_its_caller_and_nobody_else() -> None:
    def fail(kind: type[BaseException]) -> None:
        raise kind("x") if kind is not BadInput else BadInput("chunk", got="5", expected="4")

    def two_then_fail() -> Iterator[int]:
        yield 1
        yield 2
        fail(ValueError)

    async with device() as gpu:
        for kind in (BadInput, MemoryError):
            with pytest.raises(kind):
                await gpu.run(fail, kind)
        for leaving in (SystemExit, GeneratorExit, asyncio.CancelledError):
            with pytest.raises(EngineFailure, match=leaving.__name__):
                await gpu.run(fail, leaving)
        async with aclosing(gpu.stream(two_then_fail)) as results:
            assert [await anext(results), await anext(results)] == [1, 2]
            with pytest.raises(ValueError, match="x"):
                await anext(results)
        assert await gpu.run(lambda: "still there") == "still there"


async def test_a_hung_step_can_be_seen_and_results_are_signs_of_life() -> None:
    gate, again = Gate(), Gate()

    def steps() -> Iterator[str]:
        yield gate()
        again()

    async with device() as gpu:
        assert gpu.stalled_for() == 0.0
        async with aclosing(gpu.stream(steps)) as results:
            first = asyncio.ensure_future(anext(results))
            await gate.has_begun()
            await asyncio.sleep(0.15)
            stalled = gpu.stalled_for()
            assert stalled >= 0.14
            assert gpu.hung(after_seconds=0.1) == "no sign for 0 s"
            assert gpu.hung(after_seconds=10) is None
            gate.release.set()
            await first
            assert gpu.stalled_for() < stalled
            again.release.set()
            async for _ in results:
                pass
        assert gpu.stalled_for() == 0.0
        assert gpu.hung(after_seconds=0) is None
        assert gpu.busy_seconds >= 0.14


async def test_closing_lets_the_running_step_end_and_turns_the_rest_away() -> None:
    gate = Gate()
    gpu = DeviceThread("device", waiting=4)
    running = asyncio.create_task(gpu.run(gate))
    await gate.has_begun()
    waiting = asyncio.create_task(gpu.run(lambda: "too late"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(gpu.close(within=2.0))
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await gpu.run(lambda: "even later")
    gate.release.set()
    assert await running == "done"
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    await closing


async def test_closing_does_not_wait_for_a_hung_device() -> None:
    gate = Gate()
    gpu = DeviceThread("device", waiting=1)
    running = asyncio.create_task(gpu.run(gate))
    await gate.has_begun()
    waiting = asyncio.create_task(gpu.run(lambda: "never"))
    await asyncio.sleep(0)
    with pytest.raises(DeviceHung, match="did not end"):
        await gpu.close(within=0.05)
    async with asyncio.timeout(5):  # and nobody else waits for it either
        for caller in (running, waiting):
            with pytest.raises(Unavailable, match="closed"):
                await caller
    gate.release.set()
    await gpu.close(within=1.0)


async def test_closing_again_changes_nothing() -> None:
    gpu = DeviceThread("device", waiting=1)
    await asyncio.gather(gpu.close(within=1.0), gpu.close(within=1.0))
    await gpu.close(within=1.0)


async def test_an_idle_thread_keeps_nothing_of_its_last_step() -> None:
    class Memory:
        pass

    async with device() as gpu:
        memory = Memory()
        gone = weakref.ref(memory)
        await gpu.run(id, memory)
        del memory
        async with asyncio.timeout(5):
            while gone() is not None:  # noqa: ASYNC110  the other thread lets go
                await asyncio.sleep(0.001)


def test_a_step_that_outlives_its_loop_ends_quietly() -> None:
    gate, gpu = Gate(), DeviceThread("outliving", waiting=1)

    async def leave() -> None:
        running = asyncio.create_task(gpu.run(gate))
        await gate.has_begun()
        running.cancel()
        with pytest.raises(DeviceHung):
            await gpu.close(within=0.01)

    asyncio.run(leave())
    (thread,) = [t for t in threading.enumerate() if t.name == "outliving"]
    gate.release.set()
    thread.join(1)  # pytest turns what a thread raises into an error
    assert not thread.is_alive()


async def test_a_step_sees_its_caller_s_context() -> None:
    session = contextvars.ContextVar("session", default="none")
    async with device() as gpu:
        session.set("s-1")
        assert await gpu.run(session.get) == "s-1"
