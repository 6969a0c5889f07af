"""Making one attachment: at whichever replica the ingress picks, again until one answers.

On the path: attachment → **attaching** → link. Knows what the errors of replicas, and of the
ingress in front of them, mean to a session.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import structlog

from services.gateway.link import Link
from services.gateway.replicas import Replica
from services.gateway.wires import A, I, Wire
from services.runtime.metrics import Engine, GatewayMetrics
from talkingmachines.errors import (
    BadInput,
    EngineFailure,
    Fenced,
    NoCapacity,
    NotFound,
    PermissionDenied,
    TalkingMachinesError,
    TimedOut,
    Unauthenticated,
    Unavailable,
)

_log = structlog.stdlib.get_logger(__name__)

Seen = Callable[[Engine, Replica], None]


class Refused(EngineFailure):
    """No replica would answer differently: what we sent is wrong, or who we are."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for engines, in seconds."""

    open: float = 5.0  # for the first attachment of a new session, all attempts together
    attach: float = 10.0  # for one replica to build a session's caches
    rebuild: float = 20.0  # for the next answer after a loss, all attempts together
    stall: float = 8.0  # for any reply while work is under way
    first_backoff: float = 0.02
    last_backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class Going:
    """Where an attachment that is made now goes on."""

    chunk: int
    version: int  # of the log's tail
    slack: float | None  # seconds until the chunk is due; None: there is none yet


class Attaching(Generic[I, A]):
    """Makes one session's attachments to one kind of engine.

    Args:
        going: where to go on; asked at every attempt.
        seen: told of every replica that was attached to.
    """

    def __init__(
        self,
        wire: Wire[I, A],
        *,
        going: Callable[[], Going],
        patience: Patience,
        metrics: GatewayMetrics,
        seen: Seen,
    ) -> None:
        self._wire = wire
        self._going = going
        self._patience = patience
        self._metrics = metrics
        self._seen = seen

    async def first(self, *, running: bool) -> Link[Any, Any]:
        """The first attachment of a session.

        Args:
            running: whether it ran before, elsewhere: then it waits for room as well.

        Raises:
            NoCapacity: no replica has room for a new session.
            TalkingMachinesError: none answers, or it is refused.
        """
        if running:
            return await self.within(self._patience.rebuild)
        return await self.within(self._patience.open, at_once=(Refused, NoCapacity))

    async def within(
        self,
        seconds: float,
        *,
        fruitless: int = 0,
        at_once: tuple[type[TalkingMachinesError], ...] = (Refused,),
    ) -> Link[Any, Any]:
        """An attachment, tried for again and again for `seconds`.

        Args:
            fruitless: attachments that were lost in a row without an answer: whoever attaches and
                then fails is not asked at once.
            at_once: errors after which trying again is of no use.
        """
        clock = asyncio.get_running_loop().time
        deadline, backoff = clock() + seconds, self._patience.first_backoff
        if fruitless > 1:
            backoff = min(backoff * 2**fruitless, self._patience.last_backoff)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.5))
        while True:
            try:
                return await self._attach()
            except at_once:
                raise
            except TalkingMachinesError:
                pause = backoff * random.uniform(0.5, 1.5)
                if clock() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)
                backoff = min(2 * backoff, self._patience.last_backoff)

    def meaning(self, error: TalkingMachinesError) -> TalkingMachinesError:
        """What an engine's error means to the session: `Refused`, or one that may pass.

        Ray Serve's ingress says NotFound of an application that it has not heard of yet, and
        Internal when a replica was killed. While a fleet is upgraded, some replicas have another
        checkpoint; others still have ours.
        """
        match error:
            case BadInput(field=field) if field.endswith("conditioning.checkpoint"):
                return Unavailable(f"{self._wire.engine} with our checkpoint", retry_after=1.0)
            case BadInput() | PermissionDenied() | Unauthenticated():
                return Refused(f"{self._wire.engine} refused the session: {error}")
            case Fenced() | NotFound():  # these have a meaning to our client, which they lack here
                return Unavailable(f"{self._wire.engine}: {error}", retry_after=1.0)
            case _:
                return error

    async def _attach(self) -> Link[Any, Any]:
        """One attempt."""
        clock = asyncio.get_running_loop().time
        started, going = clock(), self._going()
        link: Link[Any, Any] = Link(
            self._wire.connect, next_chunk=going.chunk, version=going.version
        )
        link.send(self._wire.attach(going.chunk, going.slack))
        try:
            async with asyncio.timeout(self._patience.attach):
                replica = self._wire.attached(await link.first())
        except TimeoutError:
            link.cut()
            # Also how full replicas look behind an ingress that lets callers wait for room.
            what = f"attaching to {self._wire.engine}"
            raise TimedOut(what, limit=self._patience.attach) from None
        except TalkingMachinesError as error:
            link.cut()
            raise self.meaning(error) from error
        except asyncio.CancelledError:
            link.cut()
            raise
        engine = self._wire.engine
        self._metrics.attach_seconds.labels(engine).observe(clock() - started)
        _log.debug("attached", engine=engine, replica=replica.name, next_chunk=going.chunk)
        self._seen(engine, replica)
        return link
