"""The client's side of a call: whatever the race, the server's error arrives as itself."""

import asyncio
from collections.abc import AsyncIterator
from math import inf, nan

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from talkingmachines.channel import Limits
from talkingmachines.errors import BadInput, Unavailable
from tests.runtime.echo import Context, Echo, EchoStub, Texts, running, text

REFUSED = BadInput("audio.sample_rate", got="8000", expected="16000, 24000 or 48000")


class Refusing(Echo):
    """Ends the call with an error while the client is still sending."""

    async def join(self, requests: Texts, context: Context) -> StringValue:
        raise REFUSED

    async def chat(self, requests: Texts, context: Context) -> Texts:
        async for request in requests:
            yield request
            raise REFUSED


async def endless() -> AsyncIterator[StringValue]:
    while True:
        yield text("x" * 20_000)


async def test_an_error_is_not_lost_to_a_write_that_fails_with_it() -> None:
    async def write_until_told(stub: EchoStub) -> None:
        call = stub.chat()
        while True:
            await call.write(text("x" * 20_000))

    async def read_until_told(stub: EchoStub) -> None:
        async for _ in stub.chat(endless()):
            pass

    async def join(stub: EchoStub) -> None:
        await stub.join(endless())

    async with running(Refusing()) as there, there.channel() as channel:
        stub = EchoStub(channel)
        for attempt in range(150):
            way = (write_until_told, read_until_told, join)[attempt % 3]
            with pytest.raises(BadInput) as caught:
                await way(stub)
            assert str(caught.value) == str(REFUSED), (attempt, way)


async def test_a_write_after_the_server_s_end_tells_why_it_ended() -> None:
    class Leaving(Echo):
        async def chat(self, requests: Texts, context: Context) -> Texts:
            yield text("bye")

    for echo, error in ((Refusing(), BadInput), (Leaving(), Unavailable)):
        async with running(echo) as there, there.channel() as channel:
            call = EchoStub(channel).chat()
            await call.write(text("x"))
            await asyncio.sleep(0.1)
            with pytest.raises(error):
                await call.write(text("y"))
            await call.done_writing()


async def test_messages_sent_before_the_end_are_read_however_late() -> None:
    class Parting(Echo):
        async def chat(self, requests: Texts, context: Context) -> Texts:
            for n in range(20):
                yield text(str(n))
            raise REFUSED

    async with running(Parting()) as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        await asyncio.sleep(0.1)
        for n in range(20):
            assert await call.read() == text(str(n))
        with pytest.raises(BadInput):
            await call.read()


async def test_a_failed_write_loses_no_reply_and_no_error() -> None:
    class Parting(Echo):
        async def chat(self, requests: Texts, context: Context) -> Texts:
            await anext(requests)
            for n in range(20):
                yield text(str(n))
            raise REFUSED

    async with running(Parting()) as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        await call.write(text("go"))
        assert await call.read() == text("0")
        await asyncio.sleep(0.1)
        with pytest.raises(BadInput):
            await call.write(text("too late"))
        for n in range(1, 20):
            assert await call.read() == text(str(n))
        with pytest.raises(BadInput):
            await call.read()


async def test_nobody_there_is_unavailable() -> None:
    async with open_channel(Peer(address="127.0.0.1:1")) as channel:
        stub = EchoStub(channel)
        with pytest.raises(Unavailable):
            await stub.say(text("x"))
        with pytest.raises(Unavailable):
            await stub.chat().read()


async def test_a_cancelled_call_is_cancelled_and_not_an_error() -> None:
    async with running() as there, there.channel() as channel:
        call = EchoStub(channel).chat()
        reading = asyncio.create_task(call.read())
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await call.code() == grpc.StatusCode.CANCELLED


async def test_every_call_carries_the_channel_s_metadata() -> None:
    class Asking(Echo):
        async def say(self, request: StringValue, context: Context) -> StringValue:
            found = dict(context.invocation_metadata() or ())
            return text(f"{found['authorization']!r} {found['mine']!r}")

    async with running(Asking()) as there:
        peer = Peer(address=there.address)
        token = (("authorization", "Bearer x"),)
        async with open_channel(peer, metadata=token) as channel:
            reply = await EchoStub(channel).say(text(""), metadata=(("mine", "y"),))
    assert reply.value == "'Bearer x' 'y'"


def test_both_ends_keep_alive_without_being_turned_away() -> None:
    limits = Limits(keepalive_seconds=20)
    client, server = dict(limits.client_options()), dict(limits.server_options())
    allowed = int(server["grpc.http2.min_ping_interval_without_data_ms"])
    assert client["grpc.keepalive_time_ms"] == 20_000 > allowed
    for name in ("grpc.max_receive_message_length", "grpc.max_send_message_length"):
        assert client[name] == server[name] == limits.max_message_bytes
    assert server["grpc.max_concurrent_streams"] == 1_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_message_bytes": 1},
        {"keepalive_seconds": 0.1},
        {"keepalive_seconds": nan},
        {"keepalive_seconds": 1e9},
        {"keepalive_timeout_seconds": 0.0},
        {"keepalive_timeout_seconds": inf},
    ],
    ids=str,
)
def test_limits_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Limits(**wrong)  # type: ignore[arg-type]
