"""A servicer's methods, called by a framework: errors, counts and limits as on our own server."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import CollectorRegistry

from services.runtime.drain import Drain
from services.runtime.ingress import Ingress, Refused
from services.runtime.metrics import RpcMetrics
from services.runtime.rpc import Rpcs
from services.runtime.settings import Telemetry
from services.runtime.tracing import Tracing
from talkingmachines.errors import BadInput, Internal, TalkingMachinesError, Unavailable
from talkingmachines.status import from_rpc_error
from tests.runtime.echo import NAME, Echo, text


class Context:
    """What the framework's proxy would send on."""

    def __init__(self) -> None:
        self.told: grpc.StatusCode | None = None
        self.details = ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    def code(self) -> grpc.StatusCode | None:
        return self.told

    def set_code(self, code: grpc.StatusCode) -> None:
        self.told = code

    def set_details(self, details: str) -> None:
        self.details = details

    def arrived(self) -> TalkingMachinesError:
        """The error as a client of ours sees it."""
        assert self.told is not None
        nothing = grpc.aio.Metadata()
        return from_rpc_error(grpc.aio.AioRpcError(self.told, nothing, nothing, self.details))


class Replica:
    def __init__(self) -> None:
        self.registry, self.drain, self.context = CollectorRegistry(), Drain(0.05), Context()
        rpcs = Rpcs(
            drain=self.drain,
            metrics=RpcMetrics(self.registry),
            tracing=Tracing("test", Telemetry()),
            unary_deadline_seconds=0.05,
        )
        self.ingress = Ingress(NAME, rpcs, drain=self.drain)

    async def run(self, method: str, echo: Echo) -> None:
        if method == "say":
            await self.ingress.unary(echo.say, text("a"), self.context)
        else:
            async for _ in self.ingress.stream(echo.chat, texts("a"), self.context):
                pass

    def handled(self, method: str, code: str) -> float | None:
        labels = {"method": f"/{NAME}/{method}", "code": code}
        return self.registry.get_sample_value("tm_rpc_handled_total", labels)


class Failing(Echo):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def say(self, request: StringValue, context: Any) -> StringValue:
        raise self.error

    async def chat(self, requests: Any, context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield request
            raise self.error


async def texts(*values: str) -> AsyncIterator[StringValue]:
    for value in values:
        yield text(value)


async def test_replies_pass_through() -> None:
    replica = Replica()
    assert await replica.ingress.unary(Echo().say, text("a"), replica.context) == text("a")
    stream = replica.ingress.stream(Echo().chat, texts("a", "b"), replica.context)
    assert [reply.value async for reply in stream] == ["a", "b"]
    assert replica.handled("say", "OK") == replica.handled("chat", "OK") == 1


@pytest.mark.parametrize("method", ["say", "chat"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [(BadInput("field", got="x", expected="y"), BadInput), (KeyError("hunter2"), Internal)],
    ids=["domain", "fault"],
)
async def test_errors_arrive_as_what_they_were(
    method: str, error: Exception, kind: type[TalkingMachinesError]
) -> None:
    replica, echo = Replica(), Failing(error)
    with pytest.raises(Refused) as refused:
        await replica.run(method, echo)
    arrived = replica.context.arrived()
    assert type(arrived) is kind
    if isinstance(error, TalkingMachinesError):
        assert vars(arrived) == vars(error)
    assert "hunter2" not in replica.context.details
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(arrived)
    assert replica.context.told is not None
    assert replica.handled(method, replica.context.told.name) == 1


async def test_a_framework_that_stops_asking_closes_the_handler() -> None:
    closed = asyncio.Event()

    class Endless(Echo):
        async def chat(self, requests: Any, context: Any) -> AsyncIterator[StringValue]:
            try:
                while True:
                    yield text("more")
            finally:
                closed.set()

    replica = Replica()
    async with aclosing(replica.ingress.stream(Endless().chat, texts(), replica.context)) as stream:
        await anext(stream)
    assert closed.is_set()
    assert replica.handled("chat", "CANCELLED") == 1


async def test_a_drain_ends_what_overstays_it_and_lets_nobody_in() -> None:
    class Waiting(Echo):
        async def chat(self, requests: Any, context: Any) -> AsyncIterator[StringValue]:
            yield text("begun")
            await asyncio.Event().wait()

    replica = Replica()
    stream = replica.ingress.stream(Waiting().chat, texts(), replica.context)
    await anext(stream)
    replica.drain.start()
    with pytest.raises(Refused):
        await anext(stream)
    assert isinstance(replica.context.arrived(), Unavailable)
    with pytest.raises(Refused):
        await anext(replica.ingress.stream(Waiting().chat, texts(), replica.context))
