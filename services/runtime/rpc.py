"""What holds for every RPC that we serve, whoever owns the gRPC server.

On the path: wire → interceptor or ingress → **RPC** → servicer. Domain errors become their status;
whatever else is raised becomes `Internal` with an id that the log carries too, and tells nothing
private. Unary calls without a deadline get one, a drain ends what overstays it, traces go on, RPCs
are counted.

`interceptor.py` applies it to servers of ours, `ingress.py` where a framework (Ray Serve) has the
server and calls our methods. A servicer knows nothing of either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NoReturn, Protocol
from uuid import uuid4

import grpc
import structlog

from services.runtime.drain import Drain
from services.runtime.metrics import RpcMetrics
from services.runtime.tracing import Tracing, continued
from talkingmachines.errors import (
    BadInput,
    EngineFailure,
    Internal,
    TalkingMachinesError,
    TimedOut,
    Unavailable,
)
from talkingmachines.status import code_of

_log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS = 1.0  # another process is there already: the caller only has to find it

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Rpc:
    method: str  # /package.Service/Method
    unary: bool  # both ways


class Caller(Protocol):
    """Whoever called, as the owner of the server shows them."""

    def metadata(self) -> Metadata: ...
    def time_remaining(self) -> float | None:
        """Seconds of the caller's deadline that are left; None without one."""

    def code(self) -> grpc.StatusCode | None:
        """What they have been told already."""

    async def abort(self, error: TalkingMachinesError) -> NoReturn:
        """Tell them, by raising what the server's owner understands."""


class CallerGone(Exception):
    """A reply could not be written."""


class Rpcs:
    """Runs the RPCs of a process."""

    def __init__(
        self,
        *,
        drain: Drain,
        metrics: RpcMetrics,
        tracing: Tracing,
        unary_deadline_seconds: float,
    ) -> None:
        self._drain = drain
        self._metrics = metrics
        self._tracing = tracing
        self._unary_deadline = unary_deadline_seconds

    @asynccontextmanager
    async def running(self, rpc: Rpc, caller: Caller) -> AsyncIterator[None]:
        """Around one RPC's work: counts it, and answers for whatever comes of it.

        Its task must be the caller's own: that it was cancelled means that they went away.
        """
        started = perf_counter()
        task = asyncio.current_task()
        code = grpc.StatusCode.OK
        self._metrics.started.labels(rpc.method).inc()
        self._metrics.in_flight.labels(rpc.method).inc()
        try:
            with continued(caller.metadata()), self._span(rpc):
                async with self._limited(rpc, caller):
                    yield
        except (grpc.aio.AbortError, CallerGone):  # whoever is there has been told
            code = caller.code() or grpc.StatusCode.CANCELLED
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError | GeneratorExit) and _ended(task):
                code = _code_of_cancellation(caller)
                raise
            # Also when something inside was cancelled, and nobody cancelled us: the server would
            # never answer.
            told = _described(rpc, error)
            code = code_of(told)
            await caller.abort(told)
        finally:
            self._metrics.in_flight.labels(rpc.method).dec()
            self._metrics.handled.labels(rpc.method, code.name).inc()
            seconds = self._metrics.seconds if rpc.unary else self._metrics.stream_seconds
            seconds.labels(rpc.method).observe(perf_counter() - started)

    def _span(self, rpc: Rpc) -> AbstractContextManager[None]:
        return self._tracing.rpc(rpc.method) if rpc.unary else nullcontext()

    @asynccontextmanager
    async def _limited(self, rpc: Rpc, caller: Caller) -> AsyncIterator[None]:
        """Within the RPC's own deadline and the drain's."""
        if self._drain.started.is_set() and not rpc.unary:
            raise Unavailable("this process is draining", retry_after=_RETRY_SECONDS)
        unlimited = rpc.unary and caller.time_remaining() is None
        limit = asyncio.timeout(self._unary_deadline if unlimited else None)
        try:
            async with limit:
                with self._drain.limited(limit):
                    yield
        except TimeoutError:
            if not limit.expired():
                raise  # the handler's own
            if self._drain.remaining > 0:
                raise TimedOut(rpc.method, limit=self._unary_deadline) from None
            raise Unavailable("this process is ending", retry_after=_RETRY_SECONDS) from None


def domain_error(error: BaseException) -> TalkingMachinesError | None:
    """The domain error that `error` is, or that a task group holds and nothing else with it."""
    match error:
        case TalkingMachinesError():
            return error
        case BaseExceptionGroup(exceptions=members):
            found = [domain_error(member) for member in members]
            return None if None in found else found[0]
        case _:
            return None


def _described(rpc: Rpc, error: BaseException) -> TalkingMachinesError:
    """What the caller is told of `error`; logged, if it is ours to mend."""
    domain = domain_error(error)
    name = type(domain).__name__
    match domain:
        case None:
            fault = uuid4().hex[:12]
            _log.error("fault in a servicer", fault=fault, method=rpc.method, exc_info=error)
            domain = Internal(f"internal fault {fault}")
        case BadInput(field=field):
            _log.info("rpc refused", error=name, field=field, method=rpc.method)
        case EngineFailure() | Internal():
            _log.error("rpc failed", error=name, method=rpc.method, exc_info=error)
        case _:
            _log.info("rpc refused", error=name, method=rpc.method)
    return domain


def _ended(task: asyncio.Task[Any] | None) -> bool:
    """Whether `task` was cancelled (the client went away, the server stops), or its loop is gone.

    What is closed with its loop, or by the garbage collector, does not run in its own task.
    """
    try:
        running = asyncio.current_task()
    except RuntimeError:
        return True
    return running is not task or task is None or task.cancelling() > 0


def _code_of_cancellation(caller: Caller) -> grpc.StatusCode:
    late = caller.time_remaining() == 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
