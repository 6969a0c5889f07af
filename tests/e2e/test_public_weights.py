"""Public weights of every format in live calls: prompts, speech, a hand-over, an engine that dies.

Once with all that a fleet is but Ray: real servicers, gateways and Redis over real connections, a
score server that vanishes. And the two students that are live in a real Ray, whose replica is
killed. Nothing is known to any of them but the files and what an operator says of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from ray import serve

from loadtest.processes import descendants
from services.gateway.attaching import Patience
from services.gateway.gateway import gateway
from services.gateway.settings import EnginePeer, Redis, Settings
from services.runtime.attachments import Terms
from services.runtime.channel import open_channel
from services.runtime.drain import Drain
from services.runtime.settings import Listen, Peer, read
from services.score import app as score_app
from services.score.settings import Settings as ScoreSettings
from services.vae import app as vae_app
from talkingmachines import duration
from talkingmachines.errors import Unavailable
from talkingmachines.media import Pcm
from talkingmachines.v1 import avatar_pb2, media_pb2
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceStub
from tests.e2e.calls import DRIVE, PATIENCE, RAW, heard_out
from tests.e2e.public import write_public
from tests.gateway.fleet import Talk, eventually, png, valkey
from tests.ray_cluster import cluster
from tests.score import served as score
from tests.vae import served as vae

pytestmark = pytest.mark.timeout(600)  # a machine that is busy starts a fleet in minutes

# Adapters, with keys and values for each noise level; one file, with a window of chunks.
IN_RAY = ("liveavatar", "realvideo")

_SECONDS = 2.0  # of speech
_TERMS = {"max_age_seconds": 1.0, "headroom": 16}
_AT_ONCE = 2  # calls: more would wait for two cores, not for each other
_ENGINE = {
    "terms": _TERMS,
    "device": "cpu",
    "threads": 1,
    "endpoint": {"host": "127.0.0.1", "port": 0},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("public")
    return folder, write_public(folder)


async def test_every_format_is_called_handed_over_and_outlives_its_engine(
    files: tuple[Path, Mapping[str, dict[str, Any]]], tmp_path: Path
) -> None:
    folder, formats = files
    decoding = vae.settings(folder / "vae", sessions=16, terms=Terms(**_TERMS))
    async with vae.serving(decoding) as decoder, asyncio.TaskGroup() as group:
        there = EnginePeer(address=f"127.0.0.1:{decoder.server.port}")
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(name: str, told: dict[str, Any]) -> None:
            async with places:
                await _alone(name, _ENGINE | told, there, tmp_path / name)

        for name, told in formats.items():
            group.create_task(one(name, told))


async def test_live_students_in_the_whole_fleet(
    files: tuple[Path, Mapping[str, dict[str, Any]]], tmp_path: Path
) -> None:
    folder, formats = files
    with engines(folder, {name: formats[name] for name in IN_RAY}) as address:
        async with asyncio.TaskGroup() as group:
            for name in IN_RAY:
                group.create_task(_in_ray(name, address, tmp_path / name))


async def _alone(name: str, told: dict[str, Any], decoder: EnginePeer, blobs: Path) -> None:
    """A score server of its own, which vanishes and comes back with nothing in its memory."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(score.serving(read(ScoreSettings, told)))

        async def die() -> None:
            first.drain.end_now()
            await first.server.stop()
            again = score.serving(read(ScoreSettings, told), port=first.server.port)
            await stack.enter_async_context(again)

        peer = EnginePeer(address=f"127.0.0.1:{first.server.port}")
        async with calling(peer, decoder, blobs) as stub:
            await _called(name, stub, die)


async def _in_ray(name: str, address: str, blobs: Path) -> None:
    """An application of its own, whose replica is killed; Serve starts another."""

    async def die() -> None:
        title = f"ServeReplica:{name}:"
        (replica,) = [pid for pid, line in descendants(os.getpid()).items() if title in line]
        os.kill(replica, signal.SIGKILL)

    peer = EnginePeer(address=address, application=name)
    async with calling(peer, EnginePeer(address=address), blobs) as stub:
        await _called(name, stub, die)


async def _called(name: str, stub: Any, die: Callable[[], Awaitable[None]]) -> None:
    """One character and one call, whose engine dies in the middle."""
    talk = Talk().start(
        stub,
        avatar_id=await _avatar(stub),
        mode=DRIVE,
        seed=1,
        video=RAW,
        max_queue_time=duration.to_proto(PATIENCE),
    )
    rate = (await talk.ready(PATIENCE)).spec.sample_rate
    noise = np.random.default_rng(1).integers(-9_000, 9_000, int(_SECONDS * rate))
    speech = Pcm(noise.astype("<i2").tobytes(), rate)
    talk.say(speech)
    await talk.until(lambda it: _told(it, "hand_overs"), PATIENCE)
    await die()
    await talk.until(lambda it: _told(it, "rebuilds"), PATIENCE)
    (seen,) = await heard_out([talk])
    frames = list(seen.frames)
    assert frames == list(range(len(frames))), name
    assert len(frames) >= _SECONDS * 16, name
    assert speech.samples in seen.heard, name
    different = {frame.tobytes() for frame in seen.frames.values()}
    assert len(different) > len(frames) // 2, name


async def _avatar(stub: Any) -> str:
    request = avatar_pb2.CreateAvatarRequest(
        display_name="ada",
        image=png(seed=1),
        speakers=[avatar_pb2.Speaker(face=media_pb2.Region(x=0.1, y=0.1, width=0.8, height=0.8))],
        prompt="a woman talks",
        listening_prompt="she listens",
    )
    made: list[avatar_pb2.Avatar] = []

    async def created() -> bool:
        try:
            made.append((await stub.CreateAvatar(request)).avatar)
        except Unavailable:  # engines that start at once are not there at once
            return False
        return True

    await eventually(created, PATIENCE)
    assert (made[0].prompt, made[0].listening_prompt) == ("a woman talks", "she listens")
    return made[0].avatar_id


def _told(talk: Talk, count: str) -> bool:
    return any(getattr(told, count) for told in talk.told("statistics")[-1:])


@asynccontextmanager
async def calling(drawing: EnginePeer, decoding: EnginePeer, blobs: Path) -> AsyncIterator[Any]:
    """A stub of a gateway with a Redis of its own."""
    with ExitStack() as stack:
        redis = stack.enter_context(valkey())
        settings = Settings(
            listen=Listen(notice_seconds=0, drain_seconds=0),
            score=drawing,
            vae=decoding,
            redis=Redis(url=SecretStr(f"redis://127.0.0.1:{redis.port}")),
            blobs_url=blobs.as_uri(),
            patience=Patience(open=PATIENCE, rebuild=PATIENCE),
        )
        async with gateway(settings, drain=Drain(0), registry=CollectorRegistry()) as serving:
            peer = Peer(address=f"127.0.0.1:{serving.server.port}")
            async with open_channel(peer) as channel:
                yield AvatarServiceStub(channel)


@contextmanager
def engines(folder: Path, formats: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Address of the ingress of a Ray with an application for each format, and one VAE."""
    decoding = _ENGINE | {"model": str(folder / "vae"), "dtype": "float32", "sessions": 16}
    built = {"vae": vae_app.app(decoding)}
    built |= {name: score_app.app(_ENGINE | told) for name, told in formats.items()}
    targets = [
        serve.RunTarget(target=target, name=name, route_prefix=f"/{name}")
        for name, target in built.items()
    ]
    with cluster(cpus=2 * len(targets)) as address:
        serve.run_many(targets)
        yield address
