"""A servicer's methods, as a framework calls them that brings its own gRPC server.

On the path: wire → the framework's proxy → **ingress** → servicer. Ray Serve's proxy holds the
server and calls methods of a replica; our interceptor is not in its way, so what holds for every
RPC is applied here. Nothing in this file knows that framework: it takes a context with the few
methods that it uses.

An error leaves as code and text alone, since the proxy drops trailing metadata of calls that fail;
the text carries what a client needs to build the same error again (`talkingmachines.status`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, Protocol, TypeVar, cast

import grpc

from services.runtime.drain import Drain
from services.runtime.rpc import CallerGone, Metadata, Rpc, Rpcs
from talkingmachines.errors import TalkingMachinesError
from talkingmachines.status import code_of, to_text

Q = TypeVar("Q")
R = TypeVar("R")


class IngressContext(Protocol):
    """What a framework shows of a call."""

    def invocation_metadata(self) -> Any: ...
    def code(self) -> Any: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...


class Refused(Exception):
    """A call that ended with an error. Code and details are in the context; this only unwinds.

    It holds nothing but text, because a framework carries it to another process.
    """


class Ingress:
    """Runs a servicer's methods.

    Args:
        service: full name in the contracts.
        rpcs, drain: the process's.
    """

    def __init__(self, service: str, rpcs: Rpcs, *, drain: Drain) -> None:
        self._service = service
        self._rpcs = rpcs
        self._drain = drain

    async def unary(
        self, method: Callable[[Q, Any], Awaitable[R]], request: Q, context: IngressContext
    ) -> R:
        """What `method` answers.

        Raises:
            Refused: the caller is told why.
        """
        rpc = Rpc(f"/{self._service}/{method.__name__}", unary=True)
        with self._drain.running():
            async with self._rpcs.running(rpc, _Caller(context)):
                return await method(request, context)
        raise AssertionError("an RPC ends with a reply or an error")

    async def stream(
        self,
        method: Callable[[AsyncIterator[Q], Any], AsyncIterator[R]],
        requests: AsyncIterator[Q],
        context: IngressContext,
    ) -> AsyncGenerator[R, None]:
        """What `method`, an async generator, answers, message by message.

        Raises:
            Refused: the caller is told why.
        """
        rpc = Rpc(f"/{self._service}/{method.__name__}", unary=False)
        try:
            with self._drain.running():
                handler = cast("AsyncGenerator[R, None]", method(requests, context))
                async with (
                    self._rpcs.running(rpc, _Caller(context)),
                    aclosing(handler) as replies,
                ):
                    async for reply in replies:
                        try:
                            yield reply
                        except GeneratorExit:
                            raise CallerGone from None
        except CallerGone:
            return


class _Caller:
    """A caller as the framework shows them; their deadline stays with its proxy."""

    def __init__(self, context: IngressContext) -> None:
        self._context = context

    def metadata(self) -> Metadata:
        return tuple(self._context.invocation_metadata() or ())

    def time_remaining(self) -> float | None:
        return None

    def code(self) -> grpc.StatusCode | None:
        told = self._context.code()
        return told if isinstance(told, grpc.StatusCode) else None

    async def abort(self, error: TalkingMachinesError) -> NoReturn:
        self._context.set_code(code_of(error))
        self._context.set_details(to_text(error))
        raise Refused(str(error))
