"""Slots, ages, orders and limits of attachments; in virtual time, with integers as requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.runtime.attachments import Attachments, Terms
from services.runtime.drain import Drain
from services.runtime.metrics import Engine, EngineMetrics
from talkingmachines import duration
from talkingmachines.errors import BadInput, NoCapacity, TalkingMachinesError, TimedOut, Unavailable
from talkingmachines.v1 import media_pb2
from tests.virtual_time import run_virtual

TERMS = Terms(headroom=1, max_age_seconds=60, jitter=0.2, time_left_seconds=10)


class Replica:
    def __init__(self, terms: Terms = TERMS, *, slots: int = 2) -> None:
        self.slots, self.wrong, self.drain = slots, "", Drain(30)
        self.registry = CollectorRegistry()
        self.attachments: Attachments[int, str] = Attachments(
            terms,
            engine=Engine.SCORE,
            slots=lambda: self.slots,
            unhealthy=lambda: self.wrong or None,
            drain=self.drain,
            metrics=EngineMetrics(self.registry),
        )

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"engine": "score", **labels})


class Wire:
    """Requests that come when told; counts those that were read."""

    def __init__(self, *requests: int) -> None:
        self.queue: asyncio.Queue[int | None] = asyncio.Queue()
        self.read = 0
        for request in requests:
            self.queue.put_nowait(request)

    def close(self) -> None:
        self.queue.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        request = await self.queue.get()
        if request is None:
            raise StopAsyncIteration
        self.read += 1
        return request


Seen = list[tuple[float, Any]]


async def serve(replica: Replica, wire: Wire, seen: Seen) -> None:
    """A servicer that notes what comes, and when; an error at last."""
    clock = asyncio.get_running_loop().time
    try:
        async with replica.attachments.attach(wire) as attachment:
            seen.append((clock(), await attachment.header()))
            attachment.establish()
            async with aclosing(attachment.events(owing=lambda: False)) as events:
                async for event in events:
                    seen.append((clock(), event))
    except TalkingMachinesError as error:
        seen.append((clock(), error))


def in_replica(
    body: Callable[[Replica], Coroutine[Any, Any, None]], replica: Replica | None = None
) -> None:
    async def main() -> None:
        served = replica or Replica()
        async with served.attachments:
            await body(served)

    run_virtual(main())


def orders(seen: Seen) -> list[tuple[float, str, float]]:
    return [
        (
            when,
            media_pb2.HandOverReason.Name(event.reason).removeprefix("HAND_OVER_REASON_"),
            duration.from_proto(event.time_left),
        )
        for when, event in seen
        if isinstance(event, media_pb2.HandOver)
    ]


def test_an_attachment_is_asked_to_leave_at_its_age_and_ends_when_its_time_is_over() -> None:
    ages = []

    async def body(replica: Replica) -> None:
        seen: Seen = []
        await serve(replica, Wire(1), seen)
        ((when, reason, left),) = orders(seen)
        assert (reason, left) == ("AGE", 10)
        assert 48 <= when <= 72
        assert seen[-1][0] == pytest.approx(when + 10)
        assert isinstance(seen[-1][1], Unavailable)
        assert replica.attachments.capacity().sessions == 0
        ages.append(when)

    for _ in range(5):
        in_replica(body, Replica(Terms(idle_seconds=1000)))
    assert len(set(ages)) == 5, "without jitter all would move at once"


def test_half_closing_ends_it_once_nothing_is_owed() -> None:
    async def body(replica: Replica) -> None:
        wire, got, owed = Wire(1, 2), list[object](), ["answer"]
        wire.close()
        async with replica.attachments.attach(wire) as attachment:
            got.append(await attachment.header())
            attachment.establish()

            def answer() -> None:
                attachment.deliver(owed.pop())

            asyncio.get_running_loop().call_later(3, answer)
            async with aclosing(attachment.events(owing=lambda: bool(owed))) as events:
                async for event in events:
                    got.append(event)
        assert got == [1, 2, "answer"]

    in_replica(body)


def test_slots_and_headroom_and_no_more() -> None:
    async def body(replica: Replica) -> None:
        wires = [Wire(1) for _ in range(3)]
        tasks = [asyncio.create_task(serve(replica, wire, [])) for wire in wires]
        await asyncio.sleep(0.1)
        assert replica.attachments.capacity() == media_pb2.Capacity(sessions=3, slots=2)
        with pytest.raises(NoCapacity):
            async with replica.attachments.attach(Wire(1)):
                raise AssertionError("there is no slot")
        assert replica.metric("tm_engine_refusals_total", reason="capacity") == 1
        wires[0].close()
        await tasks[0]
        assert replica.metric("tm_engine_slots_used") == 2
        seen: Seen = []
        tasks.append(asyncio.create_task(serve(replica, Wire(7), seen)))
        await asyncio.sleep(0.1)
        assert seen[0][1] == 7
        for wire in wires:
            wire.close()

    in_replica(body)


def test_headroom_is_for_those_that_move_and_not_for_sessions_that_begin() -> None:
    async def body(replica: Replica) -> None:
        wires = [Wire(1) for _ in range(2)]
        tasks = [asyncio.create_task(serve(replica, wire, [])) for wire in wires]
        await asyncio.sleep(0.1)
        async with replica.attachments.attach(Wire(1)):  # a session that moves here
            with pytest.raises(NoCapacity):
                replica.attachments.begin()
        assert replica.metric("tm_engine_refusals_total", reason="capacity") == 1
        wires[0].close()
        await tasks[0]
        async with replica.attachments.attach(Wire(1)):
            replica.attachments.begin()  # a slot is free
        wires[1].close()

    in_replica(body)


def test_a_drain_asks_everybody_and_leaves_no_more_time_than_there_is() -> None:
    async def body(replica: Replica) -> None:
        seens: list[Seen] = [[], []]
        tasks = [asyncio.create_task(serve(replica, Wire(1), seen)) for seen in seens]
        await asyncio.sleep(5)
        replica.drain.start()
        await asyncio.gather(*tasks)
        for seen in seens:
            ((when, reason, left),) = orders(seen)
            assert (round(when, 3), reason, left) == (5, "DRAINING", 10)

    in_replica(body)


def test_who_is_unwell_takes_nobody_in_and_asks_all_to_leave() -> None:
    async def body(replica: Replica) -> None:
        seen: Seen = []
        task = asyncio.create_task(serve(replica, Wire(1), seen))
        await asyncio.sleep(1)
        replica.wrong = "a rank is lost"
        with pytest.raises(Unavailable, match="a rank is lost"):
            async with replica.attachments.attach(Wire(1)):
                raise AssertionError("it is not well")
        await task
        assert [reason for _, reason, _ in orders(seen)] == ["UNHEALTHY"]

    in_replica(body)


def test_too_many_for_long_means_that_the_newest_must_leave() -> None:
    async def body(replica: Replica) -> None:
        seens: list[Seen] = [[], [], []]
        wires = [Wire(1) for _ in seens]
        for seen, wire in zip(seens, wires, strict=True):
            asyncio.create_task(serve(replica, wire, seen))  # noqa: RUF006  ends with the loop
            await asyncio.sleep(0.1)
        await asyncio.sleep(14)
        assert [orders(seen) for seen in seens] == [[], [], []], "a move takes so long"
        await asyncio.sleep(3)
        assert [len(orders(seen)) for seen in seens] == [0, 0, 1]
        assert orders(seens[2])[0][1] == "OVERLOADED"

    in_replica(body)


def test_a_flood_is_read_no_further_ahead_than_allowed() -> None:
    async def body(replica: Replica) -> None:
        wire = Wire(*range(100_000))
        async with replica.attachments.attach(wire) as attachment:
            await attachment.header()
            await asyncio.sleep(5)
            assert wire.read <= TERMS.waiting + 1

    in_replica(body)


@pytest.mark.parametrize(("requests", "seconds"), [((), 10), ((1,), 60)], ids=["header", "idle"])
def test_who_says_nothing_is_left_alone(requests: tuple[int, ...], seconds: float) -> None:
    async def body(replica: Replica) -> None:
        seen: Seen = []
        await serve(replica, Wire(*requests), seen)
        when, error = seen[-1]
        assert isinstance(error, TimedOut)
        assert when == pytest.approx(seconds)

    in_replica(body, Replica(Terms(max_age_seconds=600)))


def test_a_stream_without_a_message_is_bad_input() -> None:
    async def body(replica: Replica) -> None:
        wire, seen = Wire(), Seen()
        wire.close()
        await serve(replica, wire, seen)
        assert isinstance(seen[0][1], BadInput)

    in_replica(body)


def test_a_servicer_that_is_stuck_is_cancelled_when_the_time_is_over() -> None:
    """As when the other end never reads what it is sent."""

    async def stuck(replica: Replica) -> None:
        async with replica.attachments.attach(Wire(1)) as attachment:
            await attachment.header()
            attachment.establish()
            await asyncio.Event().wait()

    async def body(replica: Replica) -> None:
        task = asyncio.create_task(stuck(replica))
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.get_running_loop().time() <= TERMS.longest_seconds
        assert replica.attachments.capacity().sessions == 0

    in_replica(body)


def test_who_has_heard_of_its_end_may_take_its_time() -> None:
    async def body(replica: Replica) -> None:
        async with replica.attachments.attach(Wire(1)) as attachment:
            await attachment.header()
            attachment.fail(Unavailable("gone", retry_after=0))
            with pytest.raises(Unavailable):
                await anext(attachment.events(owing=lambda: False))
            await asyncio.sleep(5)  # a step that still runs

    in_replica(body)


def test_a_wire_that_breaks_ends_the_attachment() -> None:
    class Broken(Wire):
        async def __anext__(self) -> int:
            if self.read:
                raise RuntimeError("connection reset")
            return await super().__anext__()

    async def body(replica: Replica) -> None:
        seen: Seen = []
        await serve(replica, Broken(1), seen)
        assert isinstance(seen[-1][1], Unavailable)

    in_replica(body)


def test_what_failed_is_told_after_what_came_before() -> None:
    async def body(replica: Replica) -> None:
        async with replica.attachments.attach(Wire(1)) as attachment:
            await attachment.header()
            attachment.deliver("first")
            attachment.fail(Unavailable("gone", retry_after=0))
            async with aclosing(attachment.events(owing=lambda: True)) as events:
                assert await anext(events) == "first"
                with pytest.raises(Unavailable, match="gone"):
                    await anext(events)

    in_replica(body)
