"""A gRPC channel whose calls raise domain errors.

On the path: client or gateway → **channel** → wire. The public client and the services' own
clients share it, so an error raised in any servicer arrives as the same class everywhere. It wraps
the channel instead of intercepting its calls: grpc.aio runs an intercepted stream through a task
and a queue of its own, which costs two hops per message and hides cancellation.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc

from talkingmachines.errors import TalkingMachinesError, Unavailable
from talkingmachines.status import from_rpc_error

T = TypeVar("T")
Metadata = Sequence[tuple[str, str]]
Options = list[tuple[str, int | str]]

_WRITE_FAILED = "Internal error from Core"
_STATUS_SECONDS = 10.0  # the server's status is on its way when a write fails; replies precede it
_POLL_SECONDS = 0.001
_LONGEST_KEEPALIVE = 86_400  # seconds
_STREAMS = 1_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What both ends of a connection agree on.

    Message size: the largest message is an attach with the tail of a session's log (a few dozen
    latents of 131 KB at 512x512) or a reference image; gRPC's own default of 4 MiB is too small.

    Keepalive: load balancers cut connections that are silent for 60 s, and a peer that vanished
    without a word is noticed only by an unanswered ping. A ping every 20 s with 10 s to answer
    does both. gRPC servers answer such pings with `too_many_pings` unless told otherwise, so the
    server's options allow them at half that interval. A server that we do not configure (Ray
    Serve's ingress) counts pings between which it sent nothing, and ends the connection at the
    third: towards it, `ping_without_calls` is off.

    Raises:
        ValueError: a number is out of range.
    """

    max_message_bytes: int = 32 * 1024 * 1024
    keepalive_seconds: float = 20.0
    keepalive_timeout_seconds: float = 10.0
    ping_without_calls: bool = True

    def __post_init__(self) -> None:
        if not 64 * 1024 <= self.max_message_bytes < 2**31:
            raise ValueError("max_message_bytes must be at least 65536 and less than 2 GiB")
        if not 1 <= self.keepalive_seconds <= _LONGEST_KEEPALIVE:
            raise ValueError(f"keepalive_seconds must be 1 to {_LONGEST_KEEPALIVE}")
        if not 0 < self.keepalive_timeout_seconds <= _LONGEST_KEEPALIVE:
            raise ValueError(f"keepalive_timeout_seconds must be > 0 to {_LONGEST_KEEPALIVE}")

    def client_options(self) -> Options:
        return [
            *self._both_ends(),
            ("grpc.http2.max_pings_without_data", 0),
            # gRPC's own pauses grow from 1 s to 120 s: a call would hold its picture for the rest
            # of the pause after a server is back.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]

    def server_options(self) -> Options:
        return [
            *self._both_ends(),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.keepalive_seconds / 2)),
            # With port sharing, a second process on a taken port starts and steals half the calls.
            ("grpc.so_reuseport", 0),
            # Many times what one gateway carries; without, a single connection may open as many
            # streams as it likes, each with a handler and its buffers.
            ("grpc.max_concurrent_streams", _STREAMS),
        ]

    def _both_ends(self) -> Options:
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", _ms(self.keepalive_seconds)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout_seconds)),
            # What is enforced in fact: of the two, 60 s by default (grpc/grpc#39239).
            ("grpc.http2.ping_timeout_ms", _ms(self.keepalive_timeout_seconds)),
            ("grpc.keepalive_permit_without_calls", int(self.ping_without_calls)),
        ]


class DomainChannel(grpc.aio.Channel):
    """`inner`, with domain errors instead of `AioRpcError` and a deadline on every unary call.

    Args:
        inner: a channel without interceptors.
        deadline_seconds: for unary calls that name no timeout of their own.
        outgoing: metadata for every call (trace context, credentials), asked when a call starts.
    """

    def __init__(
        self,
        inner: grpc.aio.Channel,
        *,
        deadline_seconds: float,
        outgoing: Callable[[], Metadata] = tuple,
    ) -> None:
        self._inner = inner
        self._deadline = deadline_seconds
        self._outgoing = outgoing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    # `_registered_method` is an argument of generated stubs that the published types leave out.

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        call = self._inner.unary_unary(method, request_serializer, response_deserializer)
        return _MultiCallable(call, self._deadline, self._outgoing)  # type: ignore[return-value]

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> grpc.aio.UnaryStreamMultiCallable[Any, Any]:
        call = self._inner.unary_stream(method, request_serializer, response_deserializer)
        return _MultiCallable(call, None, self._outgoing)  # type: ignore[return-value]

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> grpc.aio.StreamUnaryMultiCallable[Any, Any]:
        call = self._inner.stream_unary(method, request_serializer, response_deserializer)
        return _MultiCallable(call, None, self._outgoing)  # type: ignore[return-value]

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> grpc.aio.StreamStreamMultiCallable[Any, Any]:
        call = self._inner.stream_stream(method, request_serializer, response_deserializer)
        return _MultiCallable(call, None, self._outgoing)  # type: ignore[return-value]


class _MultiCallable:
    """One method of a stub: starts calls of any of the four kinds."""

    def __init__(
        self,
        start: Callable[..., Any],
        deadline: float | None,
        outgoing: Callable[[], Metadata],
    ) -> None:
        self._start = start
        self._deadline = deadline
        self._outgoing = outgoing

    def __call__(
        self,
        request: Any = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> _DomainCall:
        call = self._start(
            request,
            timeout=self._deadline if timeout is None else timeout,
            metadata=(*(metadata or ()), *self._outgoing()),
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )
        return _DomainCall(call)


class _DomainCall(grpc.aio.Call):
    """A running call of any kind; only the methods of its own kind may be used.

    When the server ends a stream while we write, grpc.aio puts the failed write (`INTERNAL:
    Internal error from Core`) in place of the status that the server sent (grpc/grpc#36066), and
    holds back replies that were not read yet. So the status is noted when it first arrives; and
    when the failed write was quicker, the replies before it are read ahead until it is there.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._peer_status: grpc.aio.AioRpcError | None = None
        # Iterating reads what has arrived even after a failed write; `read` of grpc.aio does not.
        self._replies: AsyncIterator[Any] = aiter(call) if hasattr(call, "read") else _none()
        self._read_ahead: deque[Any] = deque()
        self._reading = asyncio.Lock()
        call.add_done_callback(lambda _: self._note_status())

    @property
    def ended_with(self) -> grpc.StatusCode | None:
        """What the peer ended it with; None: nobody has, or a write failed first."""
        return None if self._peer_status is None else self._peer_status.code()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._reply().__await__()

    async def _reply(self) -> Any:
        try:
            return await self._call
        except grpc.aio.AioRpcError as error:
            raise await self._domain(error) from error

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    async def read(self) -> Any:
        """The next reply, or `grpc.aio.EOF` when the server has ended the call well."""
        async with self._reading:
            if self._read_ahead:
                return self._read_ahead.popleft()
            try:
                return await anext(self._replies)
            except StopAsyncIteration:
                failed = self._peer_status
            except grpc.aio.AioRpcError as error:
                failed = error
        if failed is None or failed.code() == grpc.StatusCode.OK:
            return grpc.aio.EOF
        raise await self._domain(failed) from failed

    async def write(self, request: Any) -> None:
        """Send one message; raises what the server ended the call with, once it has."""
        if self._call.done() and not self._call.cancelled():
            raise await self._domain(await self._status())
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise await self._domain(error) from error

    async def done_writing(self) -> None:
        # A call that is over already needs no end of requests; reading tells how it went.
        with suppress(grpc.aio.InternalError):
            await self._call.done_writing()

    async def wait_for_connection(self) -> None:
        try:
            await self._call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            raise await self._domain(error) from error

    def _note_status(self) -> None:
        # A call that is done answers without waiting.
        status = _at_once(self._status())
        if status.details() != _WRITE_FAILED:
            self._peer_status = status

    async def _status(self) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(
            code=await self._call.code(),
            trailing_metadata=await self._call.trailing_metadata(),
            details=await self._call.details(),
        )

    async def _domain(self, error: grpc.aio.AioRpcError) -> TalkingMachinesError:
        if error.details() == _WRITE_FAILED:
            with suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_SECONDS):
                    error = await self._behind_failed_write()
        if error.code() == grpc.StatusCode.OK:
            return Unavailable("the peer has ended the call", retry_after=0.0)
        return from_rpc_error(error)

    async def _behind_failed_write(self) -> grpc.aio.AioRpcError:
        """The status that the server sent, once the replies before it are read."""
        while self._peer_status is None:
            async with self._reading:
                with suppress(StopAsyncIteration, grpc.aio.AioRpcError):
                    self._read_ahead.append(await anext(self._replies))
            self._note_status()
            await asyncio.sleep(_POLL_SECONDS)  # the replies may have ended without it
        return self._peer_status

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return cast(grpc.aio.Metadata, await self._call.initial_metadata())

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return cast(grpc.aio.Metadata, await self._call.trailing_metadata())

    async def code(self) -> grpc.StatusCode:
        return cast(grpc.StatusCode, await self._call.code())

    async def details(self) -> str:
        return cast(str, await self._call.details())

    def cancel(self) -> bool:
        return cast(bool, self._call.cancel())

    def cancelled(self) -> bool:
        return cast(bool, self._call.cancelled())

    def done(self) -> bool:
        return cast(bool, self._call.done())

    def time_remaining(self) -> float | None:
        return cast("float | None", self._call.time_remaining())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._call.add_done_callback(callback)


async def _none() -> AsyncIterator[Any]:
    """The replies of a call that has a single one, which is awaited."""
    return
    yield


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    raise AssertionError("it waits")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
