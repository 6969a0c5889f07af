"""What happens around every RPC that we serve, of all four kinds.

On the path: wire → **interceptor** → servicer. Domain errors become their status; whatever else
is raised becomes `Internal` with an id that the log carries too, and tells nothing private. Unary
calls without a deadline get one, a drain ends what overstays it, traces go on, RPCs are counted.

Handlers are coroutines or async generators. Replies of a generator are written from here rather
than by grpc.aio: when the client goes away, the handler is closed at once and its `finally` has
run before the call is over, wherever it was suspended. Initial metadata is sent from here as
well: a streaming handler must not send its own (grpc.aio allows it once, the second is a fault).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

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
from talkingmachines.status import to_status

_log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS = 1.0  # another process is there already: the caller only has to find it

if TYPE_CHECKING:  # generic in its published types alone
    Handler = grpc.RpcMethodHandler[Any, Any]
Context = grpc.aio.ServicerContext[Any, Any]
Body = Callable[[], Awaitable[Any]]
Parse = Callable[[bytes], Any]
Serialize = Callable[[Any], bytes]

_MAKERS: dict[tuple[bool, bool], Callable[..., Handler]] = {  # by streaming of request, response
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


@dataclass(frozen=True, slots=True)
class _Rpc:
    method: str  # /package.Service/Method
    unary: bool  # both ways


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler except those of gRPC's own services (health, reflection)."""

    def __init__(
        self,
        *,
        drain: Drain,
        metrics: RpcMetrics,
        tracing: Tracing,
        unary_deadline_seconds: float,
        max_reply_bytes: int,
    ) -> None:
        self._drain = drain
        self._metrics = metrics
        self._tracing = tracing
        self._unary_deadline = unary_deadline_seconds
        self._max_reply_bytes = max_reply_bytes

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith("/grpc."):
            return handler
        kind = (handler.request_streaming, handler.response_streaming)
        return self._wrapped(handler, kind, _Rpc(method, unary=not any(kind)))

    def _wrapped(self, handler: Handler, kind: tuple[bool, bool], rpc: _Rpc) -> Handler:
        behaviours = (
            handler.unary_unary,
            handler.unary_stream,
            handler.stream_unary,
            handler.stream_stream,
        )
        behaviour: Callable[[Any, Any], Any] = next(b for b in behaviours if b is not None)
        parse = _checked(handler.request_deserializer)
        serialize = self._bounded(handler.response_serializer)

        async def served(request: Any, context: Context) -> Any:
            async def body() -> Any:
                message = request if handler.request_streaming else parse(request)
                result = behaviour(message, context)
                if inspect.isasyncgen(result):
                    return await _write(result, context)
                reply = await result
                return reply if handler.response_streaming else serialize(reply)

            with self._drain.running():
                if handler.response_streaming:
                    # Sent with the first reply, they would be lost when that write is cut off:
                    # grpc.aio would send them again with the status, and fail at it.
                    await context.send_initial_metadata(())
                return await self._run(rpc, context, body)

        # What comes or goes alone is parsed and serialised within `body`, where a misfit is
        # answered and counted; a stream's messages are, when the handler reads and writes them.
        return _MAKERS[kind](
            served,
            request_deserializer=parse if handler.request_streaming else None,
            response_serializer=serialize if handler.response_streaming else None,
        )

    def _bounded(self, serialize: Serialize | None) -> Serialize:
        def bounded(reply: Any) -> bytes:
            raw = bytes(reply) if serialize is None else serialize(reply)
            if len(raw) > self._max_reply_bytes:
                raise ValueError(f"a reply of {len(raw)} bytes, {self._max_reply_bytes} at most")
            return raw

        return bounded

    async def _run(self, rpc: _Rpc, context: Context, body: Body) -> Any:
        """Run one RPC's body and answer for whatever comes of it."""
        started = perf_counter()
        task = asyncio.current_task()
        code = grpc.StatusCode.OK
        self._metrics.started.labels(rpc.method).inc()
        self._metrics.in_flight.labels(rpc.method).inc()
        try:
            with continued(tuple(context.invocation_metadata() or ())), self._span(rpc):
                return await self._limited(rpc, context, body)
        except (grpc.aio.AbortError, _ClientGone):  # whoever is there has been told
            told: grpc.StatusCode | None = context.code()
            code = told or grpc.StatusCode.CANCELLED
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError | GeneratorExit) and _ended(task):
                code = _code_of_cancellation(context)
                raise
            # Also when something inside was cancelled, and nobody cancelled us: grpc.aio would
            # never answer.
            code, status = _described(rpc, error)
            await context.abort_with_status(status)
        finally:
            self._metrics.in_flight.labels(rpc.method).dec()
            self._metrics.handled.labels(rpc.method, code.name).inc()
            seconds = self._metrics.seconds if rpc.unary else self._metrics.stream_seconds
            seconds.labels(rpc.method).observe(perf_counter() - started)

    def _span(self, rpc: _Rpc) -> AbstractContextManager[None]:
        return self._tracing.rpc(rpc.method) if rpc.unary else nullcontext()

    async def _limited(self, rpc: _Rpc, context: Context, body: Body) -> Any:
        """The body, within its own deadline and the drain's."""
        if self._drain.started.is_set() and not rpc.unary:
            raise Unavailable("this process is draining", retry_after=_RETRY_SECONDS)
        unlimited = rpc.unary and context.time_remaining() is None
        limit = asyncio.timeout(self._unary_deadline if unlimited else None)
        try:
            async with limit:
                with self._drain.limited(limit):
                    return await body()
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


class _ClientGone(Exception):
    """A reply could not be written."""


async def _write(replies: AsyncGenerator[Any, Any], context: Context) -> None:
    async with aclosing(replies):
        async for reply in replies:
            try:
                await context.write(reply)
            except grpc.aio.BaseError as error:
                raise _ClientGone from error


def _checked(parse: Parse | None) -> Parse:
    def checked(raw: bytes) -> Any:
        try:
            return raw if parse is None else parse(raw)
        except DecodeError:
            got = f"{len(raw)} bytes that do not parse"
            raise BadInput("message", got=got, expected="the contract's message") from None

    return checked


def _described(rpc: _Rpc, error: BaseException) -> tuple[grpc.StatusCode, grpc.Status]:
    """How the caller is told of `error`."""
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
    status = rpc_status.to_status(to_status(domain))
    return status.code, status


def _ended(task: asyncio.Task[Any] | None) -> bool:
    """Whether `task` was cancelled (the client went away, the server stops), or its loop is gone.

    What is closed with its loop, or by the garbage collector, does not run in its own task.
    """
    try:
        running = asyncio.current_task()
    except RuntimeError:
        return True
    return running is not task or task is None or task.cancelling() > 0


def _code_of_cancellation(context: Context) -> grpc.StatusCode:
    # The published type forgets that a call may have no deadline.
    left: float | None = context.time_remaining()
    return grpc.StatusCode.DEADLINE_EXCEEDED if left == 0 else grpc.StatusCode.CANCELLED
