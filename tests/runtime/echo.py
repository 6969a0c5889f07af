"""A small service of all four kinds, and a real server on the runtime to run it in."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import CollectorRegistry

from services.runtime.channel import open_channel
from services.runtime.drain import Drain
from services.runtime.endpoint import Check
from services.runtime.metrics import RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Listen, Peer, PeerTls, Telemetry
from services.runtime.tracing import Tracing
from talkingmachines.channel import DomainChannel

NAME = "talkingmachines.test.Echo"
Context = grpc.aio.ServicerContext[StringValue, StringValue]
Texts = AsyncIterator[StringValue]


class Echo:
    """Says everything back. Tests override what they are about."""

    async def say(self, request: StringValue, context: Context) -> StringValue:
        return request

    async def spell(self, request: StringValue, context: Context) -> Texts:
        for letter in request.value:
            yield StringValue(value=letter)

    async def join(self, requests: Texts, context: Context) -> StringValue:
        return StringValue(value="".join([request.value async for request in requests]))

    async def chat(self, requests: Texts, context: Context) -> Texts:
        async for request in requests:
            yield request

    def add(self, server: grpc.aio.Server) -> None:
        coding = (StringValue.FromString, StringValue.SerializeToString)
        handlers = {
            "Say": grpc.unary_unary_rpc_method_handler(self.say, *coding),
            "Spell": grpc.unary_stream_rpc_method_handler(self.spell, *coding),
            "Join": grpc.stream_unary_rpc_method_handler(self.join, *coding),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat, *coding),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
        server.add_registered_method_handlers(NAME, handlers)


class EchoStub:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        coding: tuple[Any, Any] = (StringValue.SerializeToString, StringValue.FromString)
        self.say = channel.unary_unary(f"/{NAME}/Say", *coding)
        self.spell = channel.unary_stream(f"/{NAME}/Spell", *coding)
        self.join = channel.stream_unary(f"/{NAME}/Join", *coding)
        self.chat = channel.stream_stream(f"/{NAME}/Chat", *coding)


@dataclass(slots=True)
class Running:
    """A server that serves, and everything a test may want to look at."""

    server: Server
    registry: CollectorRegistry
    tls: PeerTls | None = None
    drain: Drain = field(init=False)

    def __post_init__(self) -> None:
        self.drain = self.server.drain

    @property
    def address(self) -> str:
        return f"localhost:{self.server.port}"

    def channel(self, **settings: Any) -> DomainChannel:
        return open_channel(Peer(address=self.address, **({"tls": self.tls} | settings)))

    def sample(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def running(
    echo: Echo | None = None, *, checks: Mapping[str, Check] | None = None, **listen: Any
) -> AsyncIterator[Running]:
    settings = Listen(**({"notice_seconds": 0.0, "drain_seconds": 5.0} | listen))
    registry = CollectorRegistry()
    with Tracing("test", Telemetry()) as tracing:
        server = Server(
            settings,
            [Service(NAME, (echo or Echo()).add)],
            drain=Drain(settings.drain_seconds),
            metrics=RpcMetrics(registry),
            tracing=tracing,
            checks=checks or {},
        )
        async with server:
            yield Running(server, registry)


def text(value: str) -> StringValue:
    return StringValue(value=value)
