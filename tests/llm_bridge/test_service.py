"""The bridge's service over gRPC, and as the process that operators run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.llm_bridge.bridge import NAME
from services.llm_bridge.persona import Patience, persona_from_proto
from services.llm_bridge.servicer import LlmBridgeServicer
from services.llm_bridge.settings import Settings
from services.runtime.channel import open_channel
from services.runtime.drain import Drain
from services.runtime.metrics import BridgeMetrics, RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Listen, Peer, Telemetry
from services.runtime.token import FleetToken
from services.runtime.tracing import Tracing
from talkingmachines.channel import DomainChannel
from talkingmachines.errors import BadInput, NoCapacity, TalkingMachinesError, Unauthenticated
from talkingmachines.v1 import avatar_pb2, llm_bridge_pb2, media_pb2
from talkingmachines.v1.llm_bridge_pb2_grpc import (
    LlmBridgeServiceStub,
    add_LlmBridgeServiceServicer_to_server,
)
from tests.fakes.realtime_server import RealtimeServer, realtime_server
from tests.fakes.speech_parts import Model, text_of
from tests.llm_bridge.call import Call, silence, voice

ROOT = Path(__file__).resolve().parents[2]


class Rpc(Call):
    """A conversation over a channel."""

    def start(self, channel: DomainChannel, **opening: Any) -> Rpc:
        self.send(open=llm_bridge_pb2.ConverseOpen(**opening))
        return self.start_bare(channel)

    def start_bare(self, channel: DomainChannel) -> Rpc:
        stub: Any = LlmBridgeServiceStub(channel)
        self._task = asyncio.create_task(self._read(stub.Converse(self.requests())))
        return self

    async def over(self) -> BaseException | None:
        await asyncio.wait_for(self._task, 10)
        return self.error

    async def _read(self, replies: Any) -> None:
        try:
            async for response in replies:
                self.tell(response)
        except TalkingMachinesError as error:
            self.error = error


@asynccontextmanager
async def served(
    *, token: Path | None = None, most: int = 2, drain_seconds: float = 3
) -> AsyncIterator[tuple[Server, DomainChannel, CollectorRegistry]]:
    registry, drain = CollectorRegistry(), Drain(drain_seconds)
    metrics = BridgeMetrics(registry)
    patience = Patience(end_silence=0.2, min_interruption=0.05, silence_timeout=0)
    servicer = LlmBridgeServicer(Model(metrics), patience, drain, metrics, FleetToken(token), most)
    server = Server(
        Listen(notice_seconds=0),
        [Service(NAME, partial(add_LlmBridgeServiceServicer_to_server, servicer))],
        drain=drain,
        metrics=RpcMetrics(registry),
        tracing=Tracing("bridge", Telemetry()),
        checks={},
    )
    shown = [("authorization", "Bearer sesame")]
    async with server:
        peer = Peer(address=f"127.0.0.1:{server.port}")
        async with open_channel(peer, metadata=shown) as channel:
            yield server, channel, registry


async def test_a_conversation_from_its_opening_to_its_end() -> None:
    async with served() as (_, channel, registry):
        rpc = Rpc().start(channel, persona=avatar_pb2.Persona(greeting="Hello there"), next_turn=7)
        rpc.send(text=avatar_pb2.Text(text="Good evening"))
        await rpc.ended(7)
        assert registry.get_sample_value("tm_conversations") == 1
        rpc.hang_up()
        assert await rpc.over() is None
        assert registry.get_sample_value("tm_conversations") == 0
    assert rpc.responses[0].opened.speech_sample_rate == 24_000
    # Its seventh turn: a call that goes on is not greeted.
    assert [it.turn for it in rpc.told("turn_started")] == [7]
    assert text_of(rpc.speech(7)).strip() == "Good evening"


async def test_the_token_is_asked_for_and_the_number_of_conversations_bounded(
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    file.write_text("another\n")
    async with served(token=file) as (_, channel, _):
        assert isinstance(await Rpc().start(channel).over(), Unauthenticated)
    file.write_text("another\nsesame\n")  # while the token is changed
    async with served(token=file, most=1) as (_, channel, _):
        one = Rpc().start(channel)
        await one.until(lambda rpc: rpc.told("opened"))
        assert isinstance(await Rpc().start(channel).over(), NoCapacity)
        one.hang_up()
        assert await one.over() is None
        two = Rpc().start(channel)
        await two.until(lambda rpc: rpc.told("opened"))
        two.hang_up()
        assert await two.over() is None


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([{"audio": media_pb2.Pcm(sample_rate=16_000)}], "message"),
        ([{"open": llm_bridge_pb2.ConverseOpen()}] * 2, "open"),
        (
            [
                {"open": llm_bridge_pb2.ConverseOpen()},
                {"audio": media_pb2.Pcm(sample_rate=16_000)},
                {"audio": media_pb2.Pcm(sample_rate=24_000)},
            ],
            "audio.sample_rate",
        ),
    ],
    ids=["audio first", "opened twice", "another rate"],
)
async def test_what_does_not_fit_is_refused_by_name(
    messages: list[dict[str, Any]], field: str
) -> None:
    async with served() as (_, channel, _):
        rpc = Rpc()
        for message in messages:
            rpc.send(**message)
        error = await rpc.start_bare(channel).over()
    assert isinstance(error, BadInput)
    assert error.field == field


async def test_a_drain_asks_to_go_elsewhere_and_lets_conversations_end() -> None:
    async with served() as (server, channel, _):
        rpc = Rpc().start(channel)
        await rpc.until(lambda rpc: rpc.told("opened"))
        stopping = asyncio.create_task(server.stop())
        await rpc.until(lambda rpc: rpc.told("hand_over"))
        assert rpc.told("hand_over")[0].reason == media_pb2.HAND_OVER_REASON_DRAINING
        rpc.hang_up()
        assert await rpc.over() is None
        await asyncio.wait_for(stopping, 2)


def test_a_persona_s_gaps_are_filled_with_the_operator_s_defaults() -> None:
    given = avatar_pb2.Persona(voice="reed")
    given.turn_taking.end_silence.seconds = 2
    given.turn_taking.silence_timeout.seconds = 0
    persona = persona_from_proto(given, defaults=Patience(0.9, 0.3, 30.0))
    assert persona.manners.patience == Patience(2.0, 0.3, 0.0)
    assert persona.instructions
    assert not persona.manners.push_to_talk


# ---- The process ----


async def start(**settings: str) -> asyncio.subprocess.Process:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TM_")},
        **{f"TM_BRIDGE_{name}": value for name, value in settings.items()},
    }
    command = (sys.executable, "-m", "services.llm_bridge")
    return await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
    )


async def port_of(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async with asyncio.timeout(60):
        async for line in process.stderr:
            said = json.loads(line)
            if said["event"] == "serving":
                return int(said["port"])
    raise AssertionError("it ended before it served")


async def converse(process: asyncio.subprocess.Process, server: RealtimeServer) -> Rpc:
    async with open_channel(Peer(address=f"127.0.0.1:{await port_of(process)}")) as channel:
        server.transcripts.append("Hello.")
        rpc = Rpc().start(channel, persona=avatar_pb2.Persona(instructions="You are Ada."))
        await rpc.until(lambda rpc: rpc.told("opened"))
        rpc.say(silence(0.2) + voice(0.5) + silence(1.0))
        await rpc.ended(1)
        process.send_signal(signal.SIGTERM)
        await rpc.until(lambda rpc: rpc.told("hand_over"))
        rpc.hang_up()
        assert await rpc.over() is None
    return rpc


async def test_a_process_with_a_realtime_server_behind_it() -> None:
    async with realtime_server() as server:
        process = await start(
            LISTEN__PORT="0",
            LISTEN__NOTICE_SECONDS="0",
            REALTIME__URL=server.url,
            REALTIME__KEY="secret",
            REALTIME__MODEL="gpt-realtime",
        )
        try:
            rpc = await converse(process, server)
            assert await asyncio.wait_for(process.wait(), 10) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        assert server.errors == []
    assert rpc.told("opened")[0].model == "gpt-realtime"
    assert rpc.spoken(1) == 24_000


async def test_every_mistake_is_told_at_the_start() -> None:
    process = await start(
        REALTIME__KEY="very-secret", TURNS__END_SILENCE="99", LOCAL__WRITER="poet", MODEL="x"
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode
    for mistake in ("REALTIME__URL", "TURNS__END_SILENCE", "LOCAL__WRITER", "MODEL"):
        assert f"TM_BRIDGE_{mistake}".encode() in said
    assert b"very-secret" not in said


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_every_setting_is_read_somewhere(field: str) -> None:
    sources = [*(ROOT / "services").rglob("*.py")]
    assert any(re.search(rf"settings\.{field}\b", file.read_text()) for file in sources)
