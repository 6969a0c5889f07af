"""What the loop does when the device fails it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from threading import Event as Latch

import pytest
import torch

from services.runtime.device import DeviceHung, DeviceThread
from services.vae.admission import Limits
from services.vae.driver import Driver
from services.vae.engine import Engine, Statistics
from services.vae.pixels import Pixels
from services.vae.runner import place
from services.vae.session import Chunk, Decoded, Event, Opening, Ready
from talkingmachines.errors import BadInput, EngineFailure, NoCapacity, TalkingMachinesError
from tests.vae.conftest import folded, random_vae
from tests.vae.served import SPEC, Call

WAIT = 30.0  # seconds, for whatever is certain to come


class Fragile(Engine):
    """Its device breaks, or hangs, at the chunk that a test names."""

    breaks_at = 1 << 30
    hangs_at = 1 << 30
    released = Latch()

    def submit(self, name: str, chunk: Chunk) -> None:
        super().submit(name, chunk)
        self.newest = chunk.number

    def step(self) -> list[Event]:
        newest = getattr(self, "newest", -1)
        if newest >= self.breaks_at:
            raise RuntimeError("the bus fell off")
        if newest >= self.hangs_at:
            self.released.wait()
        return super().step()


class Heard:
    """A session's results, and a witness who counts them."""

    def __init__(self) -> None:
        self.results: asyncio.Queue[Ready | Decoded | TalkingMachinesError] = asyncio.Queue()
        self.refusals = 0

    def deliver(self, result: Ready | Decoded) -> None:
        self.results.put_nowait(result)

    def fail(self, error: TalkingMachinesError) -> None:
        self.results.put_nowait(error)

    def stepped(self, events: list[Event], statistics: Statistics) -> None:
        pass

    def refused(self) -> None:
        self.refusals += 1

    async def next(self) -> Ready | Decoded | TalkingMachinesError:
        async with asyncio.timeout(WAIT):
            return await self.results.get()


def engine(memory_bytes: int = 1 << 30) -> Fragile:
    runner = place(random_vae(folded()), torch.device("cpu"), dtype=torch.float32)
    return Fragile(runner, Limits(memory_bytes=memory_bytes))


@asynccontextmanager
async def driven(there: Engine, heard: Heard, *, hang_seconds: float = 20) -> AsyncIterator[Driver]:
    thread = DeviceThread("vae", waiting=100)
    try:
        async with Driver(there, thread, witness=heard, hang_seconds=hang_seconds) as driver:
            yield driver
    finally:
        with suppress(DeviceHung):
            await thread.close(within=0.2)


def opening(call: Call) -> Opening:
    return Opening(SPEC, Pixels.RGB24, call.anchor, call.anchor[:, :0], 0, 0.0)


async def test_a_broken_device_is_told_to_everybody() -> None:
    there, heard, call = engine(), Heard(), Call()
    there.breaks_at = 1
    async with driven(there, heard) as driver:
        async with driver.session(opening(call), heard) as session:
            assert isinstance(await heard.next(), Ready)
            session.submit(Chunk(0, call.chunk(0), 0.0))
            told = [await heard.next() for _ in range(3)]
            assert [one.last for one in told if isinstance(one, Decoded)] == [False, False, True]
            assert driver.unhealthy() is None
            session.submit(Chunk(1, call.chunk(1), 0.0))
            assert isinstance(await heard.next(), EngineFailure)
        assert driver.unhealthy() == "the engine has stopped: RuntimeError"


async def test_a_hung_device_shows_and_does_not_hold_up_the_end() -> None:
    there, heard, call = engine(), Heard(), Call()
    there.hangs_at = 0
    try:
        async with (
            driven(there, heard, hang_seconds=0.1) as driver,
            driver.session(opening(call), heard) as session,
        ):
            assert isinstance(await heard.next(), Ready)
            session.submit(Chunk(0, call.chunk(0), 0.0))
            async with asyncio.timeout(WAIT):
                while driver.unhealthy() is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
    finally:
        there.released.set()


async def test_pictures_wait_for_their_turn_and_no_more_than_a_few() -> None:
    there, heard = engine(), Heard()
    picture = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    async with driven(there, heard) as driver:
        many = [asyncio.create_task(driver.encode(picture)) for _ in range(20)]
        done = await asyncio.gather(*many, return_exceptions=True)
        refused = [one for one in done if isinstance(one, NoCapacity)]
        assert len(refused) == 16
        assert (await driver.encode(picture)).shape == (4, 1, 4, 4)


async def test_a_session_that_leaves_frees_its_state_before_the_next_comes() -> None:
    size = engine().session_bytes(SPEC.height, SPEC.width)
    there, heard = engine(memory_bytes=size), Heard()
    async with driven(there, heard) as driver:
        for seed in range(3):
            async with driver.session(opening(Call(seed)), heard):
                with pytest.raises(NoCapacity):
                    async with driver.session(opening(Call(9)), heard):
                        raise AssertionError("there is no memory")
        assert heard.refusals == 3


class Paused(Engine):
    """Decodes one latent, and the next only when it is told."""

    go_on = Latch()
    decoded = 0

    def step(self) -> list[Event]:
        if self.decoded:
            self.go_on.wait(WAIT)
        events = super().step()
        self.decoded += sum(isinstance(event, Decoded) for event in events)
        return events


async def test_a_chunk_is_queued_while_another_is_decoded() -> None:
    runner = place(random_vae(folded()), torch.device("cpu"), dtype=torch.float32)
    there, heard, call = Paused(runner, Limits(memory_bytes=1 << 30)), Heard(), Call()
    async with driven(there, heard) as driver, driver.session(opening(call), heard) as session:
        assert isinstance(await heard.next(), Ready)
        session.submit(Chunk(0, call.chunk(0), 0.0))
        first = await heard.next()
        assert isinstance(first, Decoded)
        for number in range(1, 6):  # the device is in the middle of a step, or will be
            session.submit(Chunk(number, call.chunk(number), float(number)))
            await asyncio.sleep(0)
        there.go_on.set()
        others = [await heard.next() for _ in range(6 * 3 - 1)]
    numbers = [one.chunk for one in (first, *others) if isinstance(one, Decoded) and one.last]
    assert numbers == list(range(6))


async def test_a_chunk_that_does_not_fit_is_told_to_its_session_alone() -> None:
    there, heard, other, call = engine(), Heard(), Heard(), Call()
    async with (
        driven(there, heard) as driver,
        driver.session(opening(call), heard) as session,
        driver.session(opening(call), other) as beside,
    ):
        assert isinstance(await heard.next(), Ready)
        assert isinstance(await other.next(), Ready)
        session.submit(Chunk(3, call.chunk(3), 0.0))
        beside.submit(Chunk(0, call.chunk(0), 0.0))
        wrong = await heard.next()
        assert isinstance(wrong, BadInput)
        assert (wrong.field, wrong.got, wrong.expected) == ("chunk.latents.chunk", "3", "0")
        assert isinstance(await other.next(), Decoded)
