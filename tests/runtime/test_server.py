"""A real server on the runtime: health, reflection, limits, draining."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from services.runtime.channel import open_channel
from services.runtime.drain import Drain
from services.runtime.endpoint import CannotListen, HttpEndpoint, failing
from services.runtime.settings import Endpoint, Peer
from talkingmachines.channel import DomainChannel
from talkingmachines.errors import BadInput, Internal, Unavailable
from tests.runtime.echo import NAME, Context, Echo, EchoStub, Texts, running, text

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: DomainChannel, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return int(answer.status)


async def test_health_is_told_for_each_service() -> None:
    async with running() as there, there.channel() as channel:
        assert await health(channel, "") == SERVING
        assert await health(channel, NAME) == SERVING


async def test_a_failing_check_turns_health_and_its_end_turns_it_back() -> None:
    wrong: list[str] = []
    checks = {"device": lambda: wrong[0] if wrong else None}
    async with running(checks=checks) as there, there.channel() as channel:
        assert await health(channel, NAME) == SERVING
        for change, status in ((wrong.append, NOT_SERVING), (lambda _: wrong.clear(), SERVING)):
            change("stalled for 12 s")
            async with asyncio.timeout(3):
                while await health(channel, NAME) != status:  # noqa: ASYNC110  seen from outside
                    await asyncio.sleep(0.05)


async def test_a_check_that_raises_has_failed_and_the_others_are_still_asked() -> None:
    broken = False

    def check() -> str | None:
        if broken:
            raise RuntimeError("the driver is gone")
        return None

    async with running(checks={"device": check}) as there, there.channel() as channel:
        for broken, status in ((True, NOT_SERVING), (False, SERVING)):  # noqa: B007
            async with asyncio.timeout(3):
                while await health(channel, NAME) != status:  # noqa: ASYNC110  seen from outside
                    await asyncio.sleep(0.05)
    broken = True
    assert "RuntimeError" in failing({"device": check})["device"]


async def services_by_reflection(channel: DomainChannel) -> list[str]:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    any_channel: Any = channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(any_channel)
    async for answer in stub.ServerReflectionInfo(ask()):
        return [service.name for service in answer.list_services_response.service]
    return []


async def test_reflection_is_there_only_when_asked_for() -> None:
    async with running(reflection=True) as there, there.channel() as channel:
        assert NAME in await services_by_reflection(channel)
    async with running() as there, there.channel() as channel:
        with pytest.raises(Internal, match="UNIMPLEMENTED"):
            await services_by_reflection(channel)


async def test_a_taken_port_is_an_error_that_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port}"):
            async with running(port=port):
                pass
    async with running() as there:
        with pytest.raises(CannotListen, match="taken"):
            async with running(port=there.server.port):
                pass
        endpoint = Endpoint(port=there.server.port)
        with pytest.raises(CannotListen, match="in use"):
            async with HttpEndpoint(endpoint, registry=there.registry, checks={}):
                pass


async def test_a_server_listens_where_its_settings_say(tmp_path: Path) -> None:
    for host in ("::1", "[::1]"):
        async with running(host=host) as there:
            channel = open_channel(Peer(address=f"[::1]:{there.server.port}"))
            assert await EchoStub(channel).say(text("six")) == text("six")
            await channel.close()
    socket_file = f"unix:{tmp_path / 'echo.sock'}"
    async with running(host=socket_file), open_channel(Peer(address=socket_file)) as channel:
        assert await EchoStub(channel).say(text("here")) == text("here")


@pytest.mark.parametrize("kind", ["say", "chat"])
async def test_an_oversized_message_is_refused_with_a_clear_error(kind: str) -> None:
    limits = {"max_message_bytes": 64 * 1024}
    big = text("x" * 70_000)
    async with running(limits=limits) as there, there.channel() as channel:
        stub = EchoStub(channel)
        call = stub.chat()
        await call.write(text("small"))
        assert await call.read() == text("small")

        async def send() -> None:
            if kind == "say":
                await stub.say(big)
            else:
                await call.write(big)
                await call.read()

        with pytest.raises(BadInput, match=r"expected at most 65536 bytes, got 700\d\d bytes"):
            await send()
        assert await stub.say(text("still there")) == text("still there")


async def test_an_oversized_message_does_not_leave_its_sender() -> None:
    limits = {"max_message_bytes": 64 * 1024}
    async with running() as there, there.channel(limits=limits) as channel:
        with pytest.raises(BadInput, match="at most 65536 bytes"):
            await EchoStub(channel).say(text("x" * 70_000))


# Draining


async def test_a_stream_survives_a_drain() -> None:
    async with running() as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        await call.write(text("before"))
        assert await call.read() == text("before")
        leaving = asyncio.create_task(there.server.stop())
        await there.drain.started.wait()
        for n in range(20):
            await call.write(text(f"during {n}"))
            assert await call.read() == text(f"during {n}")
            await asyncio.sleep(0.01)
        assert not leaving.done()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
        async with asyncio.timeout(5):  # and the drain ends with its last stream, not with its time
            await leaving


async def test_a_drain_is_seen_in_health_before_the_port_closes() -> None:
    async with running(notice_seconds=0.5) as there, there.channel() as channel:
        stub = EchoStub(channel)
        leaving = asyncio.create_task(there.server.stop())
        await there.drain.started.wait()
        await asyncio.sleep(0.1)
        assert await health(channel, NAME) == NOT_SERVING
        assert await stub.say(text("quick")) == text("quick")
        with pytest.raises(Unavailable, match="draining") as refused:
            await stub.chat().read()
        assert refused.value.retry_after == 1.0
        await leaving
        async with there.channel() as later:
            with pytest.raises(Unavailable):
                await EchoStub(later).say(text("anyone?"))


class Stubborn(Echo):
    """Streams until it is made to stop, and counts the ends it saw."""

    def __init__(self) -> None:
        self.closed = 0

    async def chat(self, requests: Texts, context: Context) -> Texts:
        try:
            async for request in requests:
                yield request
        finally:
            self.closed += 1


@pytest.mark.parametrize("end_now", [False, True], ids=["grace over", "second signal"])
async def test_a_stream_that_overstays_is_told_and_ended(end_now: bool) -> None:
    echo = Stubborn()
    grace = 60.0 if end_now else 0.3
    async with running(echo, drain_seconds=grace) as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        await call.write(text("hello"))
        assert await call.read() == text("hello")
        leaving = asyncio.create_task(there.server.stop())
        await there.drain.started.wait()
        if end_now:
            await asyncio.sleep(0.1)
            there.drain.end_now()
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match="ending") as told:
                await call.read()
            await leaving
        assert told.value.retry_after == 1.0
        assert echo.closed == 1
        trailing = {key for key, _ in await call.trailing_metadata()}
        assert "grpc-status-details-bin" in trailing


class Aware(Echo):
    """Hands over when it learns of a drain, as an engine's servicer does."""

    def __init__(self) -> None:
        self.drain: asyncio.Event | None = None

    async def chat(self, requests: Texts, context: Context) -> Texts:
        assert self.drain is not None
        yield text("attached")
        await self.drain.wait()
        yield text("hand over")


async def read_to_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_stream_cut_off_in_its_first_reply_is_told_why() -> None:
    writing = asyncio.Event()

    class Wordy(Echo):
        async def chat(self, requests: Texts, context: Context) -> Texts:
            writing.set()
            while True:  # far more than the connection buffers while nobody reads
                yield text("word " * 100_000)

    async with running(Wordy()) as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        await call.write(text("go on"))
        await writing.wait()
        there.drain.end_now()
        with pytest.raises(Unavailable, match="ending"):
            await read_to_end(call)


async def test_only_a_second_signal_ends_a_drain_that_code_has_started() -> None:
    drain = Drain(60.0)
    drain.start()
    with drain.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.01)
        assert drain.remaining > 50
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.01)
        assert drain.remaining == 0


async def test_a_servicer_learns_of_a_drain_and_leaves_by_itself() -> None:
    echo = Aware()
    async with running(echo) as there, there.channel() as channel:
        echo.drain = there.drain.started
        call = EchoStub(channel).chat()
        assert await call.read() == text("attached")
        there.drain.start()
        assert [reply async for reply in call] == [text("hand over")]
        assert 0 < there.drain.remaining <= 5


class Deaf(Echo):
    """Swallows its cancellation, which no handler should."""

    async def chat(self, requests: Texts, context: Context) -> Texts:
        yield text("attached")
        for _ in range(3):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue


async def test_a_handler_that_will_not_end_does_not_hold_the_process() -> None:
    async with running(Deaf(), drain_seconds=0.1) as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        assert await call.read() == text("attached")
        async with asyncio.timeout(3):
            await there.server.stop()
        with pytest.raises(Unavailable):
            await call.read()


async def test_a_health_watch_does_not_hold_the_process() -> None:
    async with running() as there, there.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == SERVING
        leaving = asyncio.create_task(there.server.stop())
        assert (await watch.read()).status == NOT_SERVING
        async with asyncio.timeout(5):
            await leaving


async def test_bytes_that_do_not_parse_are_bad_input() -> None:
    async with running() as there, there.channel() as channel:
        say = channel.unary_unary(f"/{NAME}/Say", None, StringValue.FromString)
        with pytest.raises(BadInput, match="3 bytes that do not parse"):
            await say(b"\xff\xff\xff")
        chat = channel.stream_stream(f"/{NAME}/Chat", None, StringValue.FromString)
        call = chat()
        await call.write(b"\xff\xff\xff")
        with pytest.raises(BadInput, match="3 bytes that do not parse"):
            await call.read()


async def test_replicas_that_share_a_machine_take_one_metrics_port_each() -> None:
    registry = CollectorRegistry()
    async with HttpEndpoint(Endpoint(), registry=registry, checks={}) as first:
        # The free port after a taken one is near; nobody can promise that it is the next.
        endpoint = Endpoint(port=first.port, ports=50)
        async with HttpEndpoint(endpoint, registry=registry, checks={}) as second:
            assert first.port < second.port < first.port + 50
