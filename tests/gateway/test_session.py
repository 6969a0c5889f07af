"""One session in virtual time: what disturbs the engines does not change the media."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from services.gateway.attaching import Patience
from services.gateway.limits import SessionLimits
from services.gateway.outbox import Room
from services.gateway.pacer import Lead, Position
from talkingmachines.errors import (
    BadInput,
    EngineFailure,
    Fenced,
    Internal,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    TalkingMachinesError,
    TimedOut,
    Unavailable,
)
from talkingmachines.picture import Codec, EncodedPicture, VideoFrame
from talkingmachines.v1 import avatar_pb2, media_pb2
from tests.fakes.score import FakeScore
from tests.fakes.vae import FakeVae, dependence, mark
from tests.gateway.stage import SPEC, Client, Stage, stage, voice
from tests.virtual_time import run_virtual

SPEECH = voice(4.3)


def drive(
    *,
    pieces: int = 10**9,
    meanwhile: Callable[[Stage], Any] | None = None,
    **options: Any,
) -> Client:
    """A session that says SPEECH at once and hangs up."""

    async def main() -> Client:
        async with stage(**options) as on:
            on.say(SPEECH, pieces=pieces)
            on.hang_up()
            if meanwhile is not None:
                await meanwhile(on)
        return on.client

    return run_virtual(main())


def test_frames_and_speech_come_in_real_time_on_one_clock() -> None:
    client = drive()
    assert [frame.frame for frame in client.frames] == list(range(len(client.frames)))
    assert len(client.frames) == 9 * SPEC.frames_per_chunk
    gaps = [b - a for a, b in zip(client.times, client.times[1:], strict=False)]
    assert max(gaps) == pytest.approx(1 / SPEC.fps)
    assert min(gaps) == pytest.approx(1 / SPEC.fps)
    assert client.sound[: len(SPEECH.samples)] == SPEECH.samples
    assert not any(client.sound[len(SPEECH.samples) :])
    firsts = [pcm.first_sample for pcm in client.sounds]
    assert firsts == [SPEC.sample_of_frame(frame.frame) for frame in client.frames]
    assert [mark(frame.picture).frame for frame in client.frames] == list(range(len(firsts)))
    (started,) = client.told("turn_started")
    (ended,) = client.told("turn_ended")
    assert (started.turn, started.first_sample) == (1, 0)
    assert (ended.turn, ended.end_sample) == (1, len(SPEECH))


@pytest.mark.parametrize("pieces", [160, 777, 4_000])
def test_pieces_of_any_size_give_the_same_media(pieces: int) -> None:
    assert drive(pieces=pieces) == drive()


UNDISTURBED = drive()


@pytest.mark.parametrize("engine", ["score", "vae", "both"])
@pytest.mark.parametrize("max_age", [0.3, 0.5, 1.1])
def test_hand_overs_every_few_chunks_change_nothing(engine: str, max_age: float) -> None:
    def prepare(score: FakeScore, vae: FakeVae) -> None:
        if engine in ("score", "both"):
            score.replica.max_age = max_age
        if engine in ("vae", "both"):
            vae.replica.max_age = max_age

    moved: list[int] = []

    async def count(on: Stage) -> None:
        await on.frame(90)
        moved.append(on.parts.score.hand_overs + on.parts.vae.hand_overs)
        assert on.parts.score.rebuilds + on.parts.vae.rebuilds == 0

    client = drive(prepare=prepare, meanwhile=count)
    assert client.pictures == UNDISTURBED.pictures
    assert client.sound == UNDISTURBED.sound
    assert client.times == pytest.approx(UNDISTURBED.times)
    assert moved[0] >= 3 / max_age - 1


@pytest.mark.parametrize("engine", ["score", "vae"])
@pytest.mark.parametrize(
    ("every", "error"),
    [
        (0.12, Unavailable("CANCELLED, or no connection", retry_after=1)),
        (0.31, Internal("INTERNAL: the actor died")),  # as Ray Serve says it
        (0.5, NotFound("application", "not known to the ingress yet")),
        (0.5, NoCapacity("a stream", retry_after=1)),
        (0.5, Fenced("ABORTED")),
        (0.5, TimedOut("the call", limit=0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_killing_replicas_changes_nothing_in_the_media(
    engine: str, every: float, error: TalkingMachinesError
) -> None:
    async def kill(on: Stage) -> None:
        replica = on.score.replica if engine == "score" else on.vae.replica
        for _ in range(int(4 / every)):
            await asyncio.sleep(every)
            replica.kill(error)

    client = drive(meanwhile=kill)
    assert client.pictures == UNDISTURBED.pictures
    assert client.sound == UNDISTURBED.sound


def test_a_session_never_goes_on_with_another_checkpoint() -> None:
    async def upgrade(on: Stage) -> None:
        await on.client.has(20)
        on.vae.checkpoint = "fake-vae-2"
        on.vae.replica.kill()
        await asyncio.sleep(1)
        assert on.parts.vae.rebuilds == 0
        on.vae.checkpoint = "fake-vae-1"

    client = drive(meanwhile=upgrade)
    assert client.pictures == UNDISTURBED.pictures
    assert client.sound == UNDISTURBED.sound


def test_a_dead_fleet_ends_the_session_after_its_patience() -> None:
    async def kill(on: Stage) -> None:
        await on.client.has(20)
        on.vae.replica.refusal = Unavailable("gone", retry_after=1)
        on.vae.replica.kill()

    with pytest.RaisesGroup(Unavailable, flatten_subgroups=True):
        drive(meanwhile=kill, patience=Patience(rebuild=3))


def test_a_replica_that_fails_with_every_chunk_is_not_asked_for_ever() -> None:
    async def kill(on: Stage) -> None:
        for _ in range(1_000):
            await asyncio.sleep(0.04)
            on.score.replica.kill(EngineFailure("not a number"))

    with pytest.RaisesGroup(EngineFailure, flatten_subgroups=True):
        drive(meanwhile=kill, patience=Patience(rebuild=3), work_seconds=0.2)


def test_a_replica_that_hangs_is_left() -> None:
    async def hang(on: Stage) -> None:
        await on.client.has(20)
        on.score.replica.work_seconds = 1_000
        await asyncio.sleep(2.2)
        on.score.replica.work_seconds = 0.05

    client = drive(meanwhile=hang, patience=Patience(stall=2))
    assert client.pictures == UNDISTURBED.pictures
    assert client.sound == UNDISTURBED.sound


def test_a_missing_frame_holds_the_picture_and_loses_nothing() -> None:
    held: list[float] = []

    async def slow(on: Stage) -> None:
        await on.client.has(20)
        on.vae.replica.work_seconds = 2.0
        await asyncio.sleep(2.0)
        on.vae.replica.work_seconds = 0.05
        await on.client.has(60)
        playout = on.parts.pacer.playout
        held.append(playout.held_seconds)
        assert playout.holds >= 1
        assert playout.deadline_misses >= 1

    client = drive(meanwhile=slow)
    assert client.pictures == UNDISTURBED.pictures
    assert client.sound == UNDISTURBED.sound
    late = client.times[-1] - UNDISTURBED.times[-1]
    assert late == pytest.approx(held[0])
    assert 0.5 < late < 4


def test_generation_never_runs_further_ahead_than_its_target() -> None:
    ahead: list[int] = []

    async def watch(on: Stage) -> None:
        for _ in range(200):
            await asyncio.sleep(0.02)
            asked = on.parts.log.next_chunk * SPEC.frames_per_chunk
            ahead.append(asked - on.parts.pacer.next.frame)

    drive(meanwhile=watch, lead=Lead(target=0.8))
    assert max(ahead) <= 0.8 * SPEC.fps + SPEC.frames_per_chunk


def test_the_character_listens_for_ever_and_speaks_within_a_chunk() -> None:
    async def main() -> tuple[Client, float]:
        async with stage() as on:
            await asyncio.sleep(60)
            said_at = asyncio.get_running_loop().time()
            on.say(SPEECH)
            on.hang_up()
        return on.client, said_at

    client, said_at = run_virtual(main())
    (started,) = client.told("turn_started")
    first = SPEC.chunk_of_sample(started.first_sample) * SPEC.frames_per_chunk
    # what was asked for when the speech came, and the time to draw the next
    assert client.times[first] - said_at <= SPEC.chunk_seconds + 0.3
    gaps = [b - a for a, b in zip(client.times, client.times[1:], strict=False)]
    assert max(gaps) == pytest.approx(1 / SPEC.fps)
    heard = client.sound[2 * started.first_sample :]
    assert heard[: len(SPEECH.samples)] == SPEECH.samples


def test_two_utterances_are_two_turns() -> None:
    async def main() -> Client:
        async with stage() as on:
            on.say(SPEECH)
            on.say(voice(1.0, seed=1))
            on.hang_up()
        return on.client

    client = run_virtual(main())
    started, ended = client.told("turn_started"), client.told("turn_ended")
    assert [event.turn for event in started] == [1, 2]
    assert [event.end_sample for event in ended] == [
        len(SPEECH),
        started[1].first_sample + SPEC.sample_rate,
    ]
    assert started[1].first_sample == 9 * SPEC.samples_per_chunk
    assert {frame.turn for frame in client.frames} == {1, 2}


def interrupted(
    at: int,
    *,
    played: tuple[int, int] | None = None,
    again: float | None = None,
    **options: Any,
) -> Client:
    """Speech that is interrupted when frame `at` was sent; then other speech."""

    async def main() -> Client:
        async with stage(**options) as on:
            on.say(SPEECH)
            await on.client.has(at)
            if played is not None:
                frame, sample = played
                position = avatar_pb2.PlaybackPosition(frame=frame, sample=sample)
                on.send(playback=position)
            on.send(interrupt=avatar_pb2.Interrupt())
            if again is not None:
                await asyncio.sleep(again)
                on.say(voice(0.7, seed=5))
                await asyncio.sleep(0.4)
                on.send(interrupt=avatar_pb2.Interrupt())
            await asyncio.sleep(3)
            on.hang_up()
        return on.client

    return run_virtual(main())


@pytest.mark.parametrize("work_seconds", [0.02, 0.2])
@pytest.mark.parametrize("at", [0, 1, 11, 12, 29, 47, 48])
@pytest.mark.parametrize("lag", [None, 0, 3, 14])
def test_after_an_interruption_nothing_stale_comes_and_the_face_goes_on(
    at: int, lag: int | None, work_seconds: float
) -> None:
    frame = at + 1 if lag is None else max(0, at + 1 - lag)
    played = None if lag is None else (frame, SPEC.sample_of_frame(frame))
    client = interrupted(at, played=played, work_seconds=work_seconds)
    (cut,) = client.told("interrupted")
    assert (cut.turn, cut.frame, cut.sample) == (1, frame, SPEC.sample_of_frame(frame))
    # pictures of turn 2 go on exactly where the client was, without a gap
    after = [frame for frame in client.frames if frame.turn == 2]
    assert [picture.frame for picture in after] == list(range(cut.frame, cut.frame + len(after)))
    assert [frame.turn for frame in client.frames] == [1] * (at + 1) + [2] * len(after)
    # sound stops at once
    late = [pcm for pcm in client.sounds if pcm.turn == 2]
    assert late[0].first_sample == cut.sample
    assert not any(b"".join(pcm.samples for pcm in late))
    # what is left of the chunk being shown is what it would have been
    expected = {picture.frame: picture.picture for picture in UNDISTURBED.frames}
    boundary = -(-cut.frame // SPEC.frames_per_chunk) * SPEC.frames_per_chunk
    assert all(picture.picture == expected[picture.frame] for picture in after[: boundary - frame])
    assert after[boundary - frame].picture != expected[boundary]
    # the picture was held for no longer than it takes to draw and decode the next chunk
    gaps = [b - a for a, b in zip(client.times[at:], client.times[at + 1 :], strict=False)]
    assert max(gaps) <= 1 / SPEC.fps + 3 * work_seconds
    assert not client.told("turn_ended")


@pytest.mark.parametrize("again", [0.0, 0.01, 0.2, 0.5])
def test_interruptions_close_together_are_kept_apart(again: float) -> None:
    client = interrupted(30, again=again, work_seconds=0.1)
    turns = [cut.turn for cut in client.told("interrupted")]
    assert turns == [1, 3]
    seen = [frame.turn for frame in client.frames]
    assert seen == sorted(seen)
    for cut in client.told("interrupted"):
        after = [pcm for pcm in client.sounds if pcm.turn == cut.turn + 1]
        assert not any(b"".join(pcm.samples for pcm in after))


@pytest.mark.parametrize("target", [0.1, 1.0])
@pytest.mark.parametrize("at", range(20, 48, 3))
def test_a_rewound_session_draws_what_a_new_attachment_would_draw(at: int, target: float) -> None:
    def fresh(score: FakeScore, vae: FakeVae) -> None:
        score.replica.max_age = vae.replica.max_age = 0.1  # never the one that was rewound

    lead = Lead(target=target)
    kept, moved = interrupted(at, lead=lead), interrupted(at, lead=lead, prepare=fresh)
    first = at + 2 * SPEC.frames_per_chunk  # a hold may differ in length, the pictures may not
    assert moved.pictures[: first + 12] == kept.pictures[: first + 12]


def test_interrupting_silence_or_a_turn_that_is_over_does_nothing() -> None:
    async def main() -> Client:
        async with stage() as on:
            on.send(interrupt=avatar_pb2.Interrupt())
            on.say(voice(0.5))
            await asyncio.sleep(2)
            on.send(interrupt=avatar_pb2.Interrupt(turn=1))
            on.send(interrupt=avatar_pb2.Interrupt())
            on.hang_up()
        return on.client

    assert run_virtual(main()).told("interrupted") == []


@pytest.mark.parametrize("disturbance", ["none", "hand-overs", "kills", "interruption"])
def test_encoded_frames_depend_only_on_frames_that_the_client_got(disturbance: str) -> None:
    def prepare(_: FakeScore, vae: FakeVae) -> None:
        vae.replica.max_age = 0.4 if disturbance == "hand-overs" else None

    async def meanwhile(on: Stage) -> None:
        await on.client.has(30)
        if disturbance == "kills":
            for _ in range(6):
                on.vae.replica.kill()
                await asyncio.sleep(0.25)
        if disturbance == "interruption":
            position = avatar_pb2.PlaybackPosition(frame=27, sample=8_000)
            on.send(playback=position)
            on.parts.pacer.played(Position(27, 8_000), turn=1)
            on.session.interrupt(0)
            await asyncio.sleep(1)

    client = drive(video=Codec.H264, prepare=prepare, meanwhile=meanwhile)
    seen: tuple[int, int] | None = None
    for frame in client.frames:
        assert isinstance(frame.picture, EncodedPicture)
        encoder, index, key = dependence(frame.picture)
        assert key or seen == (encoder, index - 1)
        seen = (encoder, index)


def test_settings_and_key_frames_reach_the_encoder_and_those_that_follow_it() -> None:
    async def main() -> FakeVae:
        async with stage(video=Codec.H264) as on:
            on.send(settings=media_pb2.VideoSettings(quality=33))
            await on.client.has(5)
            on.send(key_frame=media_pb2.KeyFrameRequest())
            await on.client.has(40)
            on.hang_up()
            assert on.parts.vae_wire.video.settings.quality == 33
        keys = [frame.frame for frame in on.client.frames if _key(frame)]
        assert len(keys) == 2
        return on.vae

    assert run_virtual(main()).quality == [33]


def _key(frame: VideoFrame) -> bool:
    return isinstance(frame.picture, EncodedPicture) and frame.picture.key_frame


def test_a_client_that_does_not_read_loses_frames_and_then_its_session() -> None:
    async def main() -> tuple[int, int]:
        limits = SessionLimits()
        async with stage(limits=limits, room=Room(frames=10, seconds=5)) as on:
            on.client.reading.clear()
            await asyncio.sleep(4)
            dropped = on.parts.pacer.playout.frames_dropped
            on.client.reading.set()
            await asyncio.sleep(1)
            frames = len(on.client.frames)
            on.client.reading.clear()
        return dropped, frames

    with pytest.RaisesGroup(TimedOut, flatten_subgroups=True):
        run_virtual(main())


@pytest.mark.parametrize(
    ("request_", "error", "field"),
    [
        ({"open": avatar_pb2.Open()}, BadInput, "open"),
        ({}, BadInput, "message"),
        ({"text": avatar_pb2.Text(text="hi")}, BadInput, "text"),
        ({"audio": media_pb2.Pcm(samples=b"abc", sample_rate=8_000)}, BadInput, "audio.samples"),
        ({"audio": media_pb2.Pcm(sample_rate=7)}, BadInput, "audio.sample_rate"),
        ({"audio": media_pb2.Pcm(sample_rate=8_000, speaker=9)}, BadInput, "audio.speaker"),
        ({"audio": media_pb2.Pcm(sample_rate=8_000, turn=9)}, BadInput, "audio.turn and chunk"),
        (
            {"audio": media_pb2.Pcm(sample_rate=8_000, first_sample=9)},
            BadInput,
            "audio.first_sample",
        ),
        ({"audio": media_pb2.Pcm(sample_rate=16_000)}, BadInput, "audio.sample_rate"),
        (
            {"end_of_speech": avatar_pb2.EndOfSpeech(speaker=4)},
            BadInput,
            "end_of_speech.speaker",
        ),
        ({"interrupt": avatar_pb2.Interrupt(turn=9)}, BadInput, "interrupt.turn"),
        ({"settings": media_pb2.VideoSettings(quality=101)}, BadInput, "settings.quality"),
    ],
    ids=lambda value: str(value)[:30].replace("\n", " "),
)
def test_bad_input_ends_the_session_and_names_the_field(
    request_: dict[str, Any], error: type[BadInput], field: str
) -> None:
    async def main() -> None:
        async with stage() as on:
            on.say(voice(3), end=False)
            on.send(**request_)

    with pytest.RaisesGroup(pytest.RaisesExc(error, check=lambda bad: bad.field == field)):
        run_virtual(main())


@pytest.mark.parametrize("reason", ["flood", "too much speech", "idle", "too long"])
def test_limits_end_a_session_with_their_own_error(reason: str) -> None:
    async def main() -> None:
        limits = SessionLimits(session_seconds=40, idle_seconds=10, buffered_seconds=5)
        async with stage(limits=limits) as on:
            match reason:
                case "flood":
                    for _ in range(1_100):
                        on.send(playback=avatar_pb2.PlaybackPosition())
                case "too much speech":
                    for _ in range(12):
                        on.say(voice(1))
                case "too long":
                    for _ in range(50):
                        on.send(playback=avatar_pb2.PlaybackPosition())
                        await asyncio.sleep(1)

    expected = TimedOut if reason == "idle" else QuotaExceeded
    with pytest.RaisesGroup(expected, flatten_subgroups=True):
        run_virtual(main())
