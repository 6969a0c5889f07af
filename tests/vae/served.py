"""A small VAE replica that serves, and a caller who keeps to the contract unless told not to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from torch import Tensor

from services.runtime.attachments import Terms
from services.runtime.channel import open_channel
from services.runtime.drain import Drain
from services.runtime.metrics import RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Endpoint, Listen, Peer, Telemetry
from services.runtime.tracing import Tracing
from services.vae import checkpoint
from services.vae.replica import NAME, Replica, replica
from services.vae.settings import Settings
from talkingmachines import duration, media
from talkingmachines.media import Latents, LogTail, PastChunk, spec_to_proto
from talkingmachines.picture import (
    Codec,
    EncodedPicture,
    PixelFormat,
    RawPicture,
    VideoFormat,
    VideoFrame,
    VideoSettings,
)
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import media_pb2, vae_pb2
from talkingmachines.v1.vae_pb2_grpc import VaeServiceStub, add_VaeServiceServicer_to_server
from tests.vae.conftest import folded, random_vae

SPEC = StreamSpec(
    sample_rate=16000, fps=25, latents_per_chunk=3, frames_per_latent=4, width=32, height=32
)
FRAMES = SPEC.frames_per_chunk
RGB = VideoFormat(PixelFormat.RGB24)
WAIT = 60.0  # seconds, for whatever is certain to come

Picture = NDArray[np.uint8]


def write_checkpoint(folder: Path) -> Path:
    checkpoint.save(random_vae(folded()), folder)
    return folder


def settings(folder: Path, **changes: Any) -> Settings:
    made: dict[str, Any] = {
        "model": folder,
        "endpoint": Endpoint(),
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "sessions": 3,
        "load": 1.0,
        "memory_bytes": 1 << 30,
        "terms": Terms(header_seconds=1.0),
    }
    return Settings(**(made | changes))


@dataclass
class Running:
    stub: Any
    replica: Replica
    server: Server
    registry: CollectorRegistry

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, {"engine": "vae", **labels}) or 0.0

    async def describe(self, **asked: int) -> vae_pb2.VaeServiceDescribeResponse:
        answer = await self.stub.Describe(vae_pb2.VaeServiceDescribeRequest(**asked))
        assert isinstance(answer, vae_pb2.VaeServiceDescribeResponse)
        return answer

    async def until(self, sessions: int) -> None:
        """Wait until no more attachments than these are left, and their states are gone."""
        async with asyncio.timeout(WAIT):
            while (await self.describe()).capacity.sessions > sessions:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(chosen: Settings) -> AsyncIterator[Running]:
    """The replica on a real gRPC server."""
    drain, registry = Drain(5.0), CollectorRegistry()
    async with AsyncExitStack() as stack:
        tracing = stack.enter_context(Tracing("vae", Telemetry()))
        made = await stack.enter_async_context(
            replica(chosen, drain=drain, registry=registry, tracing=tracing)
        )
        server = Server(
            Listen(notice_seconds=0),
            [Service(NAME, partial(add_VaeServiceServicer_to_server, made.servicer))],
            drain=drain,
            metrics=RpcMetrics(registry),
            tracing=tracing,
            checks={"engine": made.unhealthy},
        )
        await stack.enter_async_context(server)
        channel = await stack.enter_async_context(
            open_channel(Peer(address=f"127.0.0.1:{server.port}"))
        )
        yield Running(VaeServiceStub(channel), made, server, registry)


@dataclass
class Call:
    """What a gateway knows of a session: its log, whose latents are drawn from a seed."""

    seed: int = 0
    turn: int = 0
    chunks: int = 0  # decoded
    spec: StreamSpec = field(default=SPEC)

    def latents(self, count: int, at: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000 * self.seed + at)
        return torch.randn(4, count, 4, 4, generator=generator)

    @property
    def anchor(self) -> Tensor:
        return self.latents(1, 999)

    def chunk(self, number: int) -> Tensor:
        return self.latents(3, number)

    def tail(self, next_chunk: int, length: int) -> LogTail:
        past = range(max(0, next_chunk - length), next_chunk)
        chunks = (
            PastChunk(number, Latents(0, number, to_tensor(self.chunk(number)))) for number in past
        )
        return LogTail(next_chunk, tuple(chunks))


class Caller:
    """One attachment, as a gateway holds it."""

    def __init__(self, stub: Any, call: Call, video: VideoFormat = RGB, **kwargs: Any) -> None:
        self.call, self._video = call, video
        self._requests: asyncio.Queue[vae_pb2.DecodeRequest | None] = asyncio.Queue()
        self.rpc = stub.Decode(self._sent(), **kwargs)
        self._responses = aiter(self.rpc)
        self.attached: vae_pb2.DecodeAttached | None = None

    def send(self, **message: Any) -> None:
        self._requests.put_nowait(vae_pb2.DecodeRequest(**message))

    def half_close(self) -> None:
        self._requests.put_nowait(None)

    def header(self, *, tail_chunks: int = 8) -> vae_pb2.DecodeAttach:
        header = vae_pb2.DecodeAttach(
            session_id=f"session-{self.call.seed}",
            spec=spec_to_proto(self.call.spec),
            anchor=to_tensor(self.call.anchor).to_proto(),
            video=self._video.to_proto(),
        )
        if self.call.chunks:
            header.tail.CopyFrom(self.call.tail(self.call.chunks, tail_chunks).to_proto())
        return header

    async def attach(self) -> Caller:
        self.send(attach=self.header())
        response = await self.next()
        assert response.HasField("attached"), response
        self.attached = response.attached
        return self

    def ask(self, number: int | None = None, *, skip: int = 0, **changes: Any) -> None:
        """Ask for the log's next chunk, or for `number`."""
        at = self.call.chunks if number is None else number
        latents = Latents(self.call.turn, at, to_tensor(self.call.chunk(at)))
        fields: dict[str, Any] = {
            "latents": latents.to_proto(),
            "slack": duration.to_proto(1.0),
            "skip_frames": skip,
        }
        self.send(chunk=vae_pb2.DecodeChunk(**(fields | changes)))

    def rewind(self, turn: int, next_chunk: int) -> None:
        self.call.turn, self.call.chunks = turn, next_chunk
        tail = self.call.tail(next_chunk, 8).to_proto()
        self.send(rewind=vae_pb2.DecodeRewind(turn=turn, tail=tail))

    async def next(self) -> vae_pb2.DecodeResponse:
        async with asyncio.timeout(WAIT):
            response = await anext(self._responses)
        assert isinstance(response, vae_pb2.DecodeResponse)
        return response

    async def read_all(self) -> None:
        """Until the end, which is an error or not."""
        while True:
            await self.next()

    async def frame(self) -> VideoFrame:
        response = await self.next()
        assert response.HasField("frame"), response
        return VideoFrame.from_proto(response.frame, at="frame")

    async def frames(self, count: int = FRAMES) -> list[VideoFrame]:
        """The rest of the log's next chunk, which the log then has."""
        got = [await self.frame() for _ in range(count)]
        first = self.call.spec.first_frame(self.call.chunks + 1) - count
        assert [frame.frame for frame in got] == list(range(first, first + count))
        assert {(one.turn, one.chunk) for one in got} == {(self.call.turn, self.call.chunks)}
        self.call.chunks += 1
        return got

    async def decode(self, chunks: int = 1) -> list[VideoFrame]:
        """One chunk after the other."""
        got = []
        for _ in range(chunks):
            self.ask()
            got += await self.frames()
        return got

    async def _sent(self) -> AsyncIterator[vae_pb2.DecodeRequest]:
        while (request := await self._requests.get()) is not None:
            yield request


def to_tensor(values: Tensor) -> media.Tensor:
    return media.Tensor.from_array(values.numpy())


def raw(frames: Sequence[VideoFrame]) -> Picture:
    """RGB pictures [F, H, W, 3] that came as they are."""
    pictures = []
    for frame in frames:
        assert isinstance(frame.picture, RawPicture)
        assert frame.picture.pixel_format is PixelFormat.RGB24
        shape = (frame.picture.height, frame.picture.width, 3)
        pictures.append(np.frombuffer(frame.picture.pixels, np.uint8).reshape(shape))
    return np.stack(pictures)


def keys(frames: Sequence[VideoFrame]) -> list[int]:
    """The numbers of the key frames."""
    return [
        frame.frame
        for frame in frames
        if isinstance(frame.picture, EncodedPicture) and frame.picture.key_frame
    ]


def shown(frames: Sequence[VideoFrame]) -> Picture:
    """What a player shows that has seen nothing but these: [F, H, W, 3]."""
    payloads, name = [], ""
    for frame in frames:
        assert isinstance(frame.picture, EncodedPicture)
        payloads.append(frame.picture.payload)
        name = {Codec.JPEG: "mjpeg", Codec.H264: "h264", Codec.VP8: "vp8"}[frame.picture.codec]
    context = av.VideoCodecContext.create(name, "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_count = 1
    pictures = [one for payload in payloads for one in context.decode(av.Packet(payload))]
    pictures += context.decode(None)
    return np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])


def encoded(codec: Codec, **values: int) -> VideoFormat:
    return VideoFormat(codec, VideoSettings(**values))


def image(side: int = 32, pixel_format: PixelFormat = PixelFormat.RGB24) -> media_pb2.RawPicture:
    size = pixel_format.size(side, side)
    pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    return media_pb2.RawPicture(
        pixel_format=pixel_format.value, width=side, height=side, pixels=pixels
    )
