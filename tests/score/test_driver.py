"""The loop that drives the engine: faults end the sessions they belong to, a hang is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from threading import Event
from time import monotonic
from typing import Any, TypeVar

import pytest

from services.runtime.device import DeviceThread
from services.score import commands
from services.score.contract import Chunk, Ended, LogTail, RankLost
from services.score.driver import Answer, Driver, Round
from services.score.engine import EngineStats
from services.score.parallel import Solo
from services.score.worker import Command
from talkingmachines.errors import BadInput, EngineFailure, TalkingMachinesError
from tests.score import calls, small
from tests.score.calls import Call

CONFIG = small.config()
R = TypeVar("R")


class Hands(Solo):
    """Carries out commands, after what the test wants to happen first."""

    before: Callable[[Command[Any]], None] = staticmethod(lambda _: None)

    def perform(self, command: Command[R]) -> R:
        self.before(command)
        return super().perform(command)


class Nobody:
    """Counts nothing but faults."""

    def __init__(self) -> None:
        self.faults: list[TalkingMachinesError] = []

    def opened(self, seconds: float) -> None: ...
    def answered(self, answer: Answer) -> None: ...
    def settled(self, round_: Round, settled: float) -> None: ...
    def holds(self, stats: EngineStats) -> None: ...
    def ended(self, ended: Ended) -> None:
        self.faults.append(ended.error)


class Heard:
    """What an attachment would be told."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Answer | TalkingMachinesError] = asyncio.Queue()
        self.deliver = self.fail = self.events.put_nowait

    async def next(self) -> Answer | TalkingMachinesError:
        async with asyncio.timeout(20):
            return await self.events.get()


class Driven:
    def __init__(self, *, probe_seconds: float = 60.0) -> None:
        self.hands = Hands(calls.worker(CONFIG))
        self.engine = calls.engine(CONFIG, hands=self.hands, clock=monotonic)
        self.thread = DeviceThread("test", waiting=20)
        self.witness = Nobody()
        self.driver = Driver(
            self.engine,
            self.thread,
            witness=self.witness,
            hang_seconds=0.2,
            probe_seconds=probe_seconds,
        )

    def session(self, call: Call, heard: Heard) -> Any:
        who = calls.avatar(CONFIG)
        return self.driver.session(who, seed=call.seed, tail=LogTail(), receiver=heard)


@asynccontextmanager
async def driven(**changes: float) -> AsyncGenerator[Driven, None]:
    made = Driven(**changes)
    try:
        async with made.driver:
            yield made
    finally:
        await made.thread.close(within=5)


async def test_a_fault_ends_the_session_it_belongs_to_and_no_other() -> None:
    async with driven() as there:
        calm, struck = Heard(), Heard()
        ada, grace = Call(CONFIG), Call(CONFIG, "grace")
        async with there.session(ada, calm) as one, there.session(grace, struck) as other:

            def fail(command: Command[Any]) -> None:
                if isinstance(command, commands.Denoise):
                    names = {part.session for part in command.batch}
                    if other.name in names:
                        raise RuntimeError("the device says no")

            there.hands.before = fail
            other.ask(grace.next())
            one.ask(ada.next())
            assert isinstance(await struck.next(), EngineFailure)
            assert isinstance(await calm.next(), Answer)
            assert len(there.witness.faults) == 1
            assert there.driver.unhealthy() is None


async def test_a_step_that_hangs_makes_the_replica_unhealthy_in_time() -> None:
    stuck = Event()

    def hang(command: Command[Any]) -> None:
        if isinstance(command, commands.Denoise):
            stuck.wait(20)

    async with driven() as there:
        there.hands.before = hang
        heard, call = Heard(), Call(CONFIG)
        async with there.session(call, heard) as session:
            assert there.driver.unhealthy() is None
            session.ask(call.next())
            began = monotonic()
            while there.driver.unhealthy() is None:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)
            assert monotonic() - began < 5
            stuck.set()
            assert isinstance(await heard.next(), Answer)
            assert there.driver.unhealthy() is None


async def test_a_lost_rank_is_found_while_nothing_is_drawn() -> None:
    async with driven(probe_seconds=0.05) as there:
        heard = Heard()
        async with there.session(Call(CONFIG), heard):

            def lose(_: Command[Any]) -> None:
                raise RankLost("a rank does not answer")

            there.hands.before = lose
            assert isinstance(await heard.next(), RankLost)
            assert there.driver.unhealthy() is not None


async def test_a_rewind_in_the_same_turn_voids_what_was_asked_for() -> None:
    async with driven() as there:
        heard, call = Heard(), Call(CONFIG)
        async with there.session(call, heard) as session:
            for chunk in range(8):
                session.ask(numbered(call, chunk))
            await session.rewind(0, LogTail())
            while not heard.events.empty():
                heard.events.get_nowait()  # drawn before
            session.ask(numbered(call, 0))
            answer = await heard.next()
            assert isinstance(answer, Answer)
            assert answer.drawn.chunk == 0
            await asyncio.sleep(0.2)
            assert heard.events.empty()
            with pytest.raises(BadInput, match="expected 1"):
                session.ask(numbered(call, 5))


def numbered(call: Call, chunk: int) -> Chunk:
    return Chunk(call.turn, chunk, call.speech(chunk), 1.0)
