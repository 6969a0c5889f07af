"""Our own gRPC server's side of every RPC, of all four kinds.

On the path: wire → **interceptor** → servicer. What holds for every RPC is `rpc.py`'s; here are
the messages. Handlers are coroutines or async generators. Replies of a generator are written from
here rather than by grpc.aio: when the client goes away, the handler is closed at once and its
`finally` has run before the call is over, wherever it was suspended. Initial metadata is sent from
here as well: a streaming handler must not send its own (grpc.aio allows it once, the second is a
fault).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from services.runtime.drain import Drain
from services.runtime.rpc import CallerGone, Metadata, Rpc, Rpcs
from talkingmachines.errors import BadInput, TalkingMachinesError
from talkingmachines.status import to_status

if TYPE_CHECKING:  # generic in its published types alone
    Handler = grpc.RpcMethodHandler[Any, Any]
Context = grpc.aio.ServicerContext[Any, Any]
Parse = Callable[[bytes], Any]
Serialize = Callable[[Any], bytes]

_MAKERS: dict[tuple[bool, bool], Callable[..., Handler]] = {  # by streaming of request, response
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler except those of gRPC's own services (health, reflection)."""

    def __init__(self, rpcs: Rpcs, *, drain: Drain, max_reply_bytes: int) -> None:
        self._rpcs = rpcs
        self._drain = drain
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
        return self._wrapped(handler, kind, Rpc(method, unary=not any(kind)))

    def _wrapped(self, handler: Handler, kind: tuple[bool, bool], rpc: Rpc) -> Handler:
        behaviours = (
            handler.unary_unary,
            handler.unary_stream,
            handler.stream_unary,
            handler.stream_stream,
        )
        behaviour: Callable[[Any, Any], Any] = next(b for b in behaviours if b is not None)
        parse = _checked(handler.request_deserializer)
        serialize = self._bounded(handler.response_serializer)

        async def body(request: Any, context: Context) -> Any:
            message = request if handler.request_streaming else parse(request)
            result = behaviour(message, context)
            if inspect.isasyncgen(result):
                return await _write(result, context)
            reply = await result
            return reply if handler.response_streaming else serialize(reply)

        async def served(request: Any, context: Context) -> Any:
            with self._drain.running():
                if handler.response_streaming:
                    # Sent with the first reply, they would be lost when that write is cut off:
                    # grpc.aio would send them again with the status, and fail at it.
                    await context.send_initial_metadata(())
                async with self._rpcs.running(rpc, _Caller(context)):
                    return await body(request, context)

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


class _Caller:
    """A caller as grpc.aio shows them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def metadata(self) -> Metadata:
        return tuple(self._context.invocation_metadata() or ())

    def time_remaining(self) -> float | None:
        # The published type forgets that a call may have no deadline.
        left: float | None = self._context.time_remaining()
        return left

    def code(self) -> grpc.StatusCode | None:
        told: grpc.StatusCode | None = self._context.code()
        return told

    async def abort(self, error: TalkingMachinesError) -> NoReturn:
        await self._context.abort_with_status(rpc_status.to_status(to_status(error)))


async def _write(replies: AsyncGenerator[Any, Any], context: Context) -> None:
    async with aclosing(replies):
        async for reply in replies:
            try:
                await context.write(reply)
            except grpc.aio.BaseError as error:
                raise CallerGone from error


def _checked(parse: Parse | None) -> Parse:
    def checked(raw: bytes) -> Any:
        try:
            return raw if parse is None else parse(raw)
        except DecodeError:
            got = f"{len(raw)} bytes that do not parse"
            raise BadInput("message", got=got, expected="the contract's message") from None

    return checked
