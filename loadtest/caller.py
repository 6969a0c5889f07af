"""One call from ringing to its end, as its kind of caller holds it.

On the path: arrivals → **caller** ⇄ SDK ⇄ fleet. Speaks in real time with pauses, in the
character's voice or as a user; cuts the character off, loses its network, hangs up, vanishes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from loadtest.arrivals import Arrival, drawn
from loadtest.book import Book, CallLog
from loadtest.marks import Ear, Eye, Face, Voice, greeting
from loadtest.measures import Measure
from loadtest.scenario import Ending, Mode, Network, Outage
from loadtest.screen import Screen
from loadtest.watching import Watching
from loadtest.wire import Wire
from talkingmachines.client import Client
from talkingmachines.errors import Internal, NoCapacity, QuotaExceeded, TalkingMachinesError
from talkingmachines.media import Pcm
from talkingmachines.session import Session
from talkingmachines.v1 import avatar_pb2

_PIECE_SECONDS = 0.04  # of speech, as microphones and synthesisers give it
_REPORT_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0  # for an answer; then the user speaks again
_FAREWELL_SECONDS = 15.0  # for what is still to be played after hanging up
_MODES = {
    Mode.DRIVE: avatar_pb2.TALK_MODE_DRIVE,
    Mode.CONVERSE: avatar_pb2.TALK_MODE_CONVERSE,
}


class EndedEarly(TalkingMachinesError):
    """The fleet ended a call without an error while its caller was still there."""


@dataclass
class Desk:
    """What all callers of a run share.

    Args:
        client: makes a connection to an address.
        host: where callers whose network can fail find the fleet; None where that is not known.
    """

    book: Book
    client: Callable[[str], Client]
    address: str
    host: tuple[str, int] | None
    faces: list[Face]
    recordings: list[Pcm]
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # the run has
    over: asyncio.Event = field(default_factory=asyncio.Event)  # the run is; everybody leaves
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)  # what outlives a call


async def call(arrival: Arrival, desk: Desk) -> None:
    """Hold one call; whatever becomes of it is in the book afterwards."""
    face = desk.faces[arrival.number % len(desk.faces)]
    log = CallLog(arrival.number, arrival.caller.name, face.avatar_id, desk.book.now)
    desk.book.calls.append(log)
    desk.book.note(Measure.CALLS, call=log.number)
    try:
        async with _address(arrival, desk) as (address, wire), desk.client(address) as client:
            await _Call(arrival, desk, log, face, wire).hold(client)
        _ended(desk.book, log, Measure.COMPLETED, "completed")
    except (NoCapacity, QuotaExceeded) as error:
        _ended(desk.book, log, Measure.REFUSALS, type(error).__name__, str(error))
    except Internal as error:
        _ended(desk.book, log, Measure.FAULTS_OF_OURS, "Internal", str(error))
    except TalkingMachinesError as error:
        _ended(desk.book, log, Measure.ERRORS, type(error).__name__, str(error))
    except Exception as error:  # noqa: BLE001  one caller's end is not the others'
        _ended(desk.book, log, Measure.FAULTS_OF_OURS, type(error).__name__, repr(error))


def _ended(book: Book, log: CallLog, measure: Measure, outcome: str, detail: str = "") -> None:
    log.ended, log.outcome, log.detail = book.now, outcome, detail
    book.note(measure, call=log.number)


@asynccontextmanager
async def _address(arrival: Arrival, desk: Desk) -> AsyncIterator[tuple[str, Wire | None]]:
    """Where the caller finds the fleet: over a wire of its own if that is to fail."""
    vanishes = arrival.ending is Ending.VANISH
    if arrival.caller.network is None and not vanishes:
        yield desk.address, None
        return
    assert desk.host is not None, "checked before anything was started"
    # Of who vanishes the wire stays: closing it would tell the fleet that it is gone.
    stack = desk.stack if vanishes else AsyncExitStack()
    wire = await stack.enter_async_context(Wire(desk.host))
    try:
        yield wire.address, wire
    finally:
        if not vanishes:
            await stack.aclose()


class _Vanished(Exception):
    """The caller is gone without a word."""


class _Call:
    """A call that is being held."""

    def __init__(
        self, arrival: Arrival, desk: Desk, log: CallLog, face: Face, wire: Wire | None
    ) -> None:
        self._arrival, self._desk, self._log, self._face, self._wire = (
            arrival,
            desk,
            log,
            face,
            wire,
        )
        self._draw = random.Random(arrival.seed)
        self._caller = arrival.caller
        self._ear = Ear()
        self._quiet = asyncio.Event()  # CONVERSE: nobody speaks
        self._began = asyncio.Event()  # CONVERSE: the character has begun to answer

    async def hold(self, client: Client) -> None:
        mode, book = self._caller.mode, self._desk.book
        persona = None
        if mode is Mode.CONVERSE:
            persona = avatar_pb2.Persona(greeting=greeting(self._arrival.number))
        waited = list[float]()
        session = client.talk(
            self._face.avatar_id,
            mode=_MODES[mode],
            seed=self._arrival.seed,
            max_queue_seconds=self._caller.queue_seconds,
            persona=persona,
            on_queued=lambda _: waited.append(book.now),
        )
        rang = book.now
        with suppress(_Vanished):
            async with session:
                book.note(Measure.CONNECTED, call=self._log.number)
                if waited:
                    book.note(Measure.QUEUED, book.now - rang, call=self._log.number)
                await self._talk(session, rang)

    async def _talk(self, session: Session, rang: float) -> None:
        spec, desk = session.spec, self._desk
        self._watching = Watching(
            desk.book,
            self._log,
            screen=Screen(spec.fps, self._caller.buffer_seconds),
            ear=self._ear if self._caller.mode is Mode.DRIVE else None,
            eye=Eye(self._face, desk.faces),
            rang=rang,
        )
        self._watching.turn_began = self._turn_began
        self._watching.turn_over = self._quiet.set
        self._voice = Voice(desk.recordings, spec.sample_rate, self._arrival.seed)
        reading = asyncio.create_task(self._read(session))
        doing = [asyncio.create_task(self._report(session))]
        speaks = self._drive if self._caller.mode is Mode.DRIVE else self._converse
        doing.append(asyncio.create_task(speaks(session)))
        if self._caller.network is not None:
            doing.append(asyncio.create_task(self._lose(self._caller.network)))
        try:
            await self._until_end(session, reading, doing)
        finally:
            for task in (reading, *doing):
                task.cancel()
            await asyncio.gather(reading, *doing, return_exceptions=True)
            self._watching.ends()

    def _turn_began(self) -> None:
        self._quiet.clear()
        self._began.set()

    async def _until_end(
        self, session: Session, reading: asyncio.Task[None], doing: list[asyncio.Task[None]]
    ) -> None:
        over = asyncio.create_task(self._desk.over.wait())
        seconds = self._arrival.call_seconds
        waiting: set[asyncio.Task[Any]] = {reading, over, *doing}
        done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if reading in done:
            reading.result()
            raise EndedEarly("the fleet ended the call without an error")
        for task in done.intersection(doing):
            task.result()
        if over in done or self._arrival.ending is Ending.LEAVE:
            return  # leaving the session says goodbye without waiting
        if self._arrival.ending is Ending.VANISH:
            assert self._wire is not None
            self._wire.hold()
            raise _Vanished
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
        if self._wire is not None:
            self._wire.mend()
        session.hang_up()
        await asyncio.wait({reading}, timeout=_FAREWELL_SECONDS)
        if reading.done():
            reading.result()

    # ---- Eyes and ears ----

    async def _read(self, session: Session) -> None:
        async for item in session:
            self._watching.takes(item)

    async def _report(self, session: Session) -> None:
        """Tell the fleet how far the viewer is, as one that buffers must."""
        spec = session.spec
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            frame = self._watching.screen.shown(self._desk.book.now)
            if frame:
                session.played(frame=frame, sample=spec.sample_of_frame(frame))

    # ---- Speaking ----

    async def _drive(self, session: Session) -> None:
        """Say something in the character's voice, pause, and so on."""
        while True:
            seconds = drawn(self._caller.speech_seconds, self._draw)
            cut_off = self._draw.random() < self._caller.interrupt
            self._watching.asks(self._ear.spoken)
            # Who cuts it off does so in the middle of what it was going to say.
            await self._say(session, seconds * (self._draw.uniform(0.3, 0.9) if cut_off else 1))
            if cut_off:
                self._watching.cuts_off()
                session.interrupt()
            else:
                session.end_of_speech()
            await asyncio.sleep(drawn(self._caller.pause_seconds, self._draw))

    async def _say(self, session: Session, seconds: float) -> None:
        """In real time."""
        clock = asyncio.get_running_loop().time
        rate, begun, said = self._voice.sample_rate, clock(), 0
        size = round(_PIECE_SECONDS * rate)
        while said < seconds * rate:
            said += size
            await asyncio.sleep(begun + said / rate - clock())
            piece = self._voice.take(size)
            self._ear.said(piece)
            await session.push(piece)

    async def _converse(self, session: Session) -> None:
        """Ask, listen to the answer, pause, ask again; the microphone is always open."""
        self._saying = 0  # samples of voice still to come from the microphone
        self._said = asyncio.Event()
        microphone = asyncio.create_task(self._microphone(session))
        try:
            await self._turn_ends()  # the greeting
            while True:
                await asyncio.sleep(drawn(self._caller.pause_seconds, self._draw))
                await self._ask(drawn(self._caller.speech_seconds, self._draw))
                if self._draw.random() >= self._caller.interrupt:
                    await self._turn_ends()  # else it speaks over the answer
        finally:
            microphone.cancel()

    async def _ask(self, seconds: float) -> None:
        if not self._quiet.is_set():
            self._watching.cuts_off()
        self._said.clear()
        self._began.clear()
        self._saying = round(seconds * self._voice.sample_rate)
        await self._said.wait()
        self._watching.asked()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._began.wait()

    async def _turn_ends(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._began.wait()
                await self._quiet.wait()

    async def _microphone(self, session: Session) -> None:
        clock = asyncio.get_running_loop().time
        rate, begun, sent = self._voice.sample_rate, clock(), 0
        size = round(_PIECE_SECONDS * rate)
        silence = Pcm(bytes(2 * size), rate)
        while True:
            sent += size
            await asyncio.sleep(begun + sent / rate - clock())
            await session.push(self._voice.take(size) if self._saying > 0 else silence)
            if self._saying > 0:
                self._saying -= size
                if self._saying <= 0:
                    self._said.set()

    # ---- Its own network ----

    async def _lose(self, network: Network) -> None:
        assert self._wire is not None
        while True:
            await asyncio.sleep(drawn(network.every_seconds, self._draw))
            match network.how:
                case Outage.CUT:
                    self._wire.cut()
                case Outage.HOLD:
                    self._wire.hold()
            await asyncio.sleep(drawn(network.out_seconds, self._draw))
            self._wire.mend()
