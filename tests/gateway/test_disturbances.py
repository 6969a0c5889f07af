"""Whatever happens to replicas, and whenever a client interrupts, in any order: the same truths."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.outbox import Room
from talkingmachines.media import Pcm
from talkingmachines.picture import Codec, EncodedPicture
from talkingmachines.v1 import avatar_pb2, media_pb2
from tests.fakes.vae import dependence
from tests.gateway.stage import SPEC, Client, Stage, stage, voice
from tests.virtual_time import run_virtual

SPEECH = voice(3.0)
FAULTS = ["kill score", "kill vae", "leave score", "leave vae", "slow vae", "slow score"]
Schedule = list[tuple[float, str]]


def schedules(*actions: str) -> st.SearchStrategy[Schedule]:
    return st.lists(st.tuples(st.floats(0.01, 0.5), st.sampled_from(actions)), max_size=12)


async def disturb(on: Stage, action: str) -> None:
    what, _, engine = action.partition(" ")
    replica = on.score.replica if engine == "score" else on.vae.replica
    match what:
        case "kill":
            replica.kill()
        case "leave":
            replica.ask_to_leave(media_pb2.HAND_OVER_REASON_DRAINING, time_left=0.3)
        case "slow":
            replica.work_seconds = 0.3
            await asyncio.sleep(0.3)
            replica.work_seconds = 0.05
        case "interrupt":
            if engine == "late" and on.client.frames:
                frame = max(0, on.client.frames[-1].frame - 5)
                position = {"frame": frame, "sample": SPEC.sample_of_frame(frame)}
                on.send(playback=avatar_pb2.PlaybackPosition(**position))
            on.send(interrupt=avatar_pb2.Interrupt())
            on.say(SPEECH)
        case "speak":
            on.say(voice(0.5, seed=9))


def held(schedule: Schedule, **options: Any) -> Client:
    async def main() -> Client:
        async with stage(**options) as on:
            on.say(SPEECH)
            for delay, action in schedule:
                await asyncio.sleep(delay)
                await disturb(on, action)
            on.hang_up()
        return on.client

    return run_virtual(main())


UNDISTURBED = held([])


@settings(max_examples=60)
@given(schedule=schedules(*FAULTS))
def test_no_fault_changes_what_is_seen_or_heard(schedule: Schedule) -> None:
    client = held([(0.0, "none"), *schedule])
    spoken = 7 * SPEC.frames_per_chunk  # afterwards it listens for as long as the faults went on
    assert client.pictures[:spoken] == UNDISTURBED.pictures[:spoken]
    assert client.sound.startswith(SPEECH.samples)
    assert not any(client.sound[len(SPEECH.samples) :])
    assert [frame.frame for frame in client.frames] == list(range(len(client.frames)))


@settings(max_examples=60)
@given(schedule=schedules(*FAULTS, "interrupt now", "interrupt late", "speak now"))
def test_no_interruption_lets_stale_media_through(schedule: Schedule) -> None:
    client = held(schedule)
    seen = [frame.turn for frame in client.frames]
    assert seen == sorted(seen)  # turns never go back
    cuts = {cut.turn + 1: cut for cut in client.told("interrupted")}
    position = 0
    turn = 0
    for frame in client.frames:
        crossed = [cuts[new] for new in range(turn + 1, frame.turn + 1) if new in cuts]
        if crossed:
            position = crossed[-1].frame
        assert frame.frame == position
        position, turn = position + 1, frame.turn
    for pcm in client.sounds:
        later = [cut.sample for new, cut in cuts.items() if new <= pcm.turn]
        assert all(pcm.first_sample >= sample for sample in later[-1:])


@settings(max_examples=20)
@given(schedule=schedules("kill vae", "leave vae", "interrupt now", "pause client"))
def test_every_frame_that_reaches_a_client_can_be_decoded(schedule: Schedule) -> None:
    async def main() -> Client:
        async with stage(video=Codec.H264, room=Room(frames=8)) as on:
            on.say(SPEECH)
            for delay, action in schedule:
                await asyncio.sleep(delay)
                if action == "pause client":
                    on.client.reading.clear()
                    await asyncio.sleep(0.7)
                    on.client.reading.set()
                else:
                    await disturb(on, action)
            on.hang_up()
        return on.client

    seen: tuple[int, int] | None = None
    for frame in run_virtual(main()).frames:
        assert isinstance(frame.picture, EncodedPicture)
        encoder, index, key = dependence(frame.picture)
        assert key or seen == (encoder, index - 1)
        seen = (encoder, index)


def test_two_speakers_are_heard_together_and_apart() -> None:
    async def main() -> Client:
        async with stage() as on:
            for speaker in (0, 1):
                pcm = voice(1.0 + speaker, seed=speaker)
                message = Pcm(pcm.samples, pcm.sample_rate, speaker=speaker).to_proto()
                on.send(audio=message)
            for speaker in (0, 1):
                on.send(end_of_speech=avatar_pb2.EndOfSpeech(speaker=speaker))
            on.hang_up()
        return on.client

    client = run_virtual(main())
    for speaker in (0, 1):
        heard = b"".join(pcm.samples for pcm in client.sounds if pcm.speaker == speaker)
        assert heard.startswith(voice(1.0 + speaker, seed=speaker).samples)
    (started,), (ended,) = client.told("turn_started"), client.told("turn_ended")
    assert (started.turn, ended.end_sample) == (1, 2 * SPEC.sample_rate)


@pytest.mark.parametrize("late", [False, True])
def test_deadlines_travel_with_the_chunks(late: bool) -> None:
    """What is asked for has the lead to be made in; what is asked for again has less, or none."""

    async def main() -> list[float]:
        async with stage() as on:
            on.say(SPEECH)
            await on.client.has(20)
            on.score.replica.work_seconds = 3.0 if late else 0.05
            await asyncio.sleep(2)
            on.score.replica.work_seconds = 0.05
            on.score.replica.kill()
            on.hang_up()
        return on.score.slacks

    slacks = run_virtual(main())
    assert max(slacks) <= 1.0
    assert (min(slacks) < 0) == late


@pytest.mark.parametrize("engine", ["score", "vae"])
def test_generation_waits_while_the_picture_is_held(engine: str) -> None:
    async def main() -> int:
        async with stage() as on:
            on.say(SPEECH)
            await on.client.has(20)
            replica = on.score.replica if engine == "score" else on.vae.replica
            replica.work_seconds = 6.0
            await asyncio.sleep(6.0)
            ahead = on.parts.log.next_chunk * SPEC.frames_per_chunk - on.parts.pacer.next.frame
            replica.work_seconds = 0.05
            on.hang_up()
        return ahead

    assert run_virtual(main()) <= SPEC.fps + SPEC.frames_per_chunk  # the lead is a second


@pytest.mark.parametrize("engine", ["score", "vae"])
def test_a_replica_that_leaves_before_it_had_work_is_left_in_time(engine: str) -> None:
    """Asked to go while another replica still works for us: no attachment is ever lost to it."""

    async def main() -> tuple[int, int]:
        async with stage() as on:
            on.say(SPEECH)
            await on.client.has(20)
            replica = on.score.replica if engine == "score" else on.vae.replica
            replica.work_seconds, replica.attach_seconds = 0.6, 0.3
            replica.ask_to_leave(media_pb2.HAND_OVER_REASON_DRAINING, time_left=5)
            await asyncio.sleep(0.5)  # the next one stands, and waits for the chunk under way
            assert replica.running == 2
            replica.ask_to_leave(media_pb2.HAND_OVER_REASON_DRAINING, time_left=5)
            await asyncio.sleep(1.0)
            replica.work_seconds = 0.05
            on.hang_up()
        stages = (on.parts.score, on.parts.vae)
        return sum(one.hand_overs for one in stages), sum(one.rebuilds for one in stages)

    assert run_virtual(main()) == (2, 0)
