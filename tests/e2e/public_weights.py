"""Public weights through the whole fleet: a character with prompts, speech, hand-over, a kill."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from talkingmachines import duration
from talkingmachines.v1 import avatar_pb2, media_pb2
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceStub
from tests.e2e.calls import DRIVE, PATIENCE, RAW, Caller, heard_out
from tests.e2e.fleet import fleet
from tests.e2e.public import write_public
from tests.gateway.fleet import Talk, eventually, png

pytestmark = pytest.mark.timeout(600)  # a machine that is busy starts a fleet in minutes


async def test_live_avatar_in_the_whole_fleet(tmp_path: Path) -> None:
    score = write_public(tmp_path / "public")
    engine = {
        "replicas": {"least": 2, "most": 2},
        "terms": {"max_age_seconds": 2.0, "headroom": 4},
    }
    gateway = {"PATIENCE__REBUILD": f"{PATIENCE:g}", "PATIENCE__OPEN": f"{PATIENCE:g}"}
    settings: dict[str, Any] = {
        "MODEL": str(tmp_path / "public"),
        "SCORE": score | engine,
        "VAE": engine | {"dtype": "float32"},
    }
    with fleet(tmp_path / "fleet", gateway=gateway, **settings) as running:
        async with open_channel(Peer(address=running.addresses.address)) as channel:
            stub = AvatarServiceStub(channel)
            face = avatar_pb2.Speaker(face=media_pb2.Region(x=0.1, y=0.1, width=0.8, height=0.8))
            request = avatar_pb2.CreateAvatarRequest(
                display_name="ada",
                image=png(seed=1),
                speakers=[face],
                prompt="a woman talks",
                listening_prompt="she listens",
            )
            made = (await stub.CreateAvatar(request)).avatar
            assert (made.prompt, made.listening_prompt) == ("a woman talks", "she listens")
            talk = Talk().start(
                stub,
                avatar_id=made.avatar_id,
                mode=DRIVE,
                seed=1,
                video=RAW,
                max_queue_time=duration.to_proto(PATIENCE),
            )
            speech = Caller(1).speech
            talk.say(speech)
            await eventually(lambda: len(talk.frames) > 48, PATIENCE)
            for pid in running.processes("ServeReplica:score"):
                os.kill(pid, signal.SIGKILL)
                with suppress(TimeoutError):  # nobody was attached to that one
                    await eventually(lambda: talk.told("statistics")[-1].rebuilds > 0, 3)
                    break
            (seen,) = await heard_out([talk])
    assert list(seen.frames) == list(range(len(seen.frames)))
    assert len(seen.frames) >= 5 * 16
    assert seen.heard[: len(speech.samples)] == speech.samples
    assert len({frame.tobytes() for frame in seen.frames.values()}) > len(seen.frames) // 2
    assert seen.hand_overs >= 1
    assert seen.rebuilds >= 1
