"""Messages read ahead: the same, in order, and what has arrived is had without waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.gateway.ahead import read_ahead
from talkingmachines.errors import BadInput


async def numbers(count: int, *, end: Exception | None = None) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number
    if end is not None:
        raise end


async def test_messages_come_in_order_however_many_there_are() -> None:
    async with read_ahead(numbers(1_000)) as arrived:
        assert [number async for number in arrived] == list(range(1_000))


async def test_what_has_arrived_is_had_without_waiting() -> None:
    async with read_ahead(numbers(20)) as arrived:
        await asyncio.sleep(0.05)
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count_turns())
        assert [await anext(arrived) for _ in range(20)] == list(range(20))
        assert turns == 0
        counting.cancel()


async def test_what_breaks_the_stream_is_raised_after_what_came_before() -> None:
    async with read_ahead(numbers(3, end=BadInput("message", got="9", expected="8"))) as arrived:
        await asyncio.sleep(0.01)
        assert [await anext(arrived) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(BadInput):
            await anext(arrived)


@pytest.mark.parametrize("read", [0, 5])
async def test_leaving_ends_it_whatever_was_not_read(read: int) -> None:
    async with asyncio.timeout(5):
        async with read_ahead(numbers(10_000)) as arrived:
            await asyncio.sleep(0.01)
            for _ in range(read):
                await anext(arrived)
