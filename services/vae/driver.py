"""The one loop that drives the engine.

Between the servicer and `engine.py`. The engine lives on the device thread; here is what the event
loop knows of it. While anything waits the engine is stepped, and between two steps it takes in what
was asked for meanwhile, so the most urgent piece always goes next. What a step brings is told to
the session it belongs to.

    servicer ─► Session.submit ─► (step on the device thread) ─► Receiver.deliver ─► attachment
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import structlog
from torch import Tensor

from services.runtime.device import DeviceThread
from services.vae.engine import Engine, Statistics
from services.vae.session import Chunk, Decoded, Event, Failed, Opening, Ready
from talkingmachines.errors import (
    BadInput,
    EngineFailure,
    NoCapacity,
    NotFound,
    TalkingMachinesError,
)

_log = structlog.stdlib.get_logger(__name__)

_ENCODING = 4  # pictures that may wait for the device; sessions come first
_RETRY_SECONDS = 1.0


class Receiver(Protocol):
    """Where a session's results go."""

    def deliver(self, result: Ready | Decoded, /) -> None: ...
    def fail(self, error: TalkingMachinesError, /) -> None: ...


class Witness(Protocol):
    """Who counts what happens here; called on the loop."""

    def stepped(self, events: list[Event], statistics: Statistics) -> None: ...
    def refused(self) -> None: ...


class Session:
    """One attached session, as the loop sees it. Its engine's name is its own: one session of the
    caller's may be attached here twice while it moves."""

    def __init__(self, driver: Driver, name: str) -> None:
        self._driver, self.name = driver, name

    def submit(self, chunk: Chunk) -> None:
        """Queue the next chunk, without waiting for the device.

        What is wrong with it (not the next chunk, latents that do not fit) its receiver is told.
        """
        self._driver.take(self.name, chunk)

    async def rewind(self, tail: Tensor, *, next_chunk: int, deadline: float) -> None:
        """Go on at `next_chunk`, after `tail`; what waits or is on its way is dropped.

        Raises:
            BadInput: a tail that does not fit.
        """
        rewound = lambda engine: engine.rewind(
            self.name, tail, next_chunk=next_chunk, deadline=deadline
        )
        with suppress(NotFound):
            await self._driver.run(rewound)


class Driver:
    """Drives an engine, from entering to leaving.

    Args:
        device: the thread that the engine lives on.
        hang_seconds: after which a step without a sign is taken for hung.
    """

    def __init__(
        self, engine: Engine, device: DeviceThread, *, witness: Witness, hang_seconds: float
    ) -> None:
        self._engine, self._device, self._witness = engine, device, witness
        self._hang_seconds = hang_seconds
        self._receivers: dict[str, Receiver] = {}
        self._named = 0
        self._encoding = 0
        # Filled on the loop, emptied on the device thread: who waited for the device to take a
        # chunk would wait for the pass that runs, and all that was decoded meanwhile with it.
        self._inbox: deque[tuple[str, Chunk]] = deque()
        self._refused: list[tuple[str, BadInput]] = []  # refused, and not told; the device thread's
        self._work = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._fault: str | None = None
        self.statistics = engine.statistics()

    async def __aenter__(self) -> Driver:
        self._driving = asyncio.create_task(self._drive())
        self._driving.add_done_callback(self._stopped)
        return self

    async def __aexit__(self, *_: object) -> None:
        # The thread is closed next, with all that it holds; one that hangs would not answer.
        ending = [self._driving, *self._closing]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def unhealthy(self) -> str | None:
        """Why this replica cannot be relied on, or None."""
        return self._fault or self._device.hung(after_seconds=self._hang_seconds)

    @asynccontextmanager
    async def session(self, opening: Opening, receiver: Receiver) -> AsyncGenerator[Session, None]:
        """A session of the engine's, open until left. `Ready` comes when its state is built.

        Raises:
            BadInput: the stream does not fit this VAE.
            NoCapacity: the memory for one more session is not there.
        """
        self._named += 1
        name = f"attachment-{self._named}"
        self._receivers[name] = receiver
        try:
            await self._open(name, opening)
            yield Session(self, name)
        finally:
            del self._receivers[name]
            # Not awaited: whoever leaves may be cancelled again, and the state must go.
            closing = asyncio.create_task(self._close(name))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def encode(self, frames: Tensor) -> Tensor:
        """As the engine's, between two steps.

        Raises:
            BadInput: a picture that does not fit.
            NoCapacity: too many wait.
            EngineFailure: the pass failed.
        """
        if self._encoding >= _ENCODING:
            raise NoCapacity("encoding a picture", retry_after=_RETRY_SECONDS)
        self._encoding += 1
        try:
            return await self._device.run(self._engine.encode, frames)
        except RuntimeError as error:
            raise EngineFailure(f"encoding failed: {_line(error)}") from error
        finally:
            self._encoding -= 1

    def take(self, name: str, chunk: Chunk) -> None:
        """Give a chunk to the engine before its next step."""
        self._inbox.append((name, chunk))
        self._work.set()

    async def run(self, ask: Ask) -> None:
        """Ask the engine for something, and let it work."""
        self.statistics = await self._device.run(self._asked, ask)
        self._work.set()

    # ---- On the loop ----

    async def _open(self, name: str, opening: Opening) -> None:
        if self._closing:  # what is being freed counts as free
            await asyncio.wait(self._closing)
        try:
            await self.run(lambda engine: engine.open(name, opening))
        except NoCapacity:
            self._witness.refused()
            raise

    async def _drive(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            refused, events, busy, self.statistics = await self._device.run(self._step)
            if busy:
                self._work.set()
            self._witness.stepped(events, self.statistics)
            for event in events:
                self._tell(event)
            self._refuse(refused)

    def _tell(self, event: Event) -> None:
        receiver = self._receivers.get(event.session)
        if receiver is None:
            return  # it has left
        if isinstance(event, Failed):
            receiver.fail(event.error)
        else:
            receiver.deliver(event)

    def _refuse(self, refused: list[tuple[str, BadInput]]) -> None:
        """Tell those whose chunks were not taken."""
        for name, error in refused:
            if name in self._receivers:
                self._receivers[name].fail(error)

    def _stopped(self, driving: asyncio.Task[None]) -> None:
        """Without its loop a replica decodes nothing: let its health and its sessions know."""
        if driving.cancelled():
            return
        error = driving.exception()
        self._fault = f"the engine has stopped: {type(error).__name__}"
        _log.error(self._fault, exc_info=error)
        for receiver in self._receivers.values():
            receiver.fail(EngineFailure(self._fault))

    async def _close(self, name: str) -> None:
        # It failed and is gone already, or the thread is closed and nothing is left.
        with suppress(TalkingMachinesError):
            await self.run(lambda engine: _forget(engine, name))

    # ---- On the device thread ----

    def _asked(self, ask: Ask) -> Statistics:
        # What was submitted before this was asked for comes before it.
        self._refused.extend(self._take_in())
        ask(self._engine)
        return self._engine.statistics()

    def _step(self) -> tuple[list[tuple[str, BadInput]], list[Event], bool, Statistics]:
        refused = [*self._refused, *self._take_in()]
        self._refused.clear()
        events = self._engine.step()
        return refused, events, self._engine.busy, self._engine.statistics()

    def _take_in(self) -> list[tuple[str, BadInput]]:
        """Let the engine have what was submitted; what it refuses comes back."""
        refused: list[tuple[str, BadInput]] = []
        while self._inbox:
            name, chunk = self._inbox.popleft()
            try:
                with suppress(NotFound):  # it has failed or left
                    self._engine.submit(name, chunk)
            except BadInput as error:
                refused.append((name, error))
        return refused


class Ask(Protocol):
    def __call__(self, engine: Engine, /) -> None: ...


def _forget(engine: Engine, name: str) -> None:
    with suppress(NotFound):
        engine.close(name)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
