"""Engines that compute nothing: what is left is the cost of everything around them.

Score and VAE as the contracts have them, with latents and pictures of the size of a real stream
and always the same bytes. For benchmarks of whatever is not an engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from services.runtime.drain import Drain
from services.runtime.metrics import RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Listen, Telemetry
from services.runtime.tracing import Tracing
from talkingmachines.media import DataType, Tensor, spec_to_proto
from talkingmachines.picture import Codec, EncodedPicture
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import media_pb2, score_pb2, vae_pb2
from talkingmachines.v1.score_pb2_grpc import (
    ScoreServiceServicer,
    add_ScoreServiceServicer_to_server,
)
from talkingmachines.v1.vae_pb2_grpc import VaeServiceServicer, add_VaeServiceServicer_to_server

SLOTS = 10_000


@dataclass(frozen=True, slots=True)
class Stream:
    """What engines of some size would send."""

    spec: StreamSpec
    latent_shape: tuple[int, int, int, int]
    picture_bytes: int  # of one encoded frame
    score_seconds: float = 0.0  # for a chunk, of time and not of work
    vae_seconds: float = 0.0

    @property
    def latent_bytes(self) -> int:
        return 2 * int(np.prod(self.latent_shape))


# What tm-18b sends: 393 KB of latents in 0.75 s, and pictures at 1 Mbit/s; after about as long as
# the arithmetic of a chunk takes one H200.
FULL_SIZE = Stream(
    StreamSpec(
        sample_rate=16_000,
        fps=16,
        latents_per_chunk=3,
        frames_per_latent=4,
        width=512,
        height=512,
        lookahead_samples=8_160,
    ),
    latent_shape=(16, 3, 64, 64),
    picture_bytes=8_000,
    score_seconds=0.35,
    vae_seconds=0.05,
)


class SyntheticScore(ScoreServiceServicer):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        payload = Tensor(DataType.FLOAT16, stream.latent_shape, bytes(stream.latent_bytes))
        self._tensor = payload.to_proto()
        self._tail = score_pb2.LogTailLength(latent_chunks=1, speech_chunks=3)

    async def Describe(self, request: Any, context: Any) -> score_pb2.ScoreServiceDescribeResponse:
        return score_pb2.ScoreServiceDescribeResponse(
            checkpoint="synthetic",
            spec=spec_to_proto(self._stream.spec),
            latent_shape=self._stream.latent_shape,
            max_speakers=1,
            tail=self._tail,
            capacity=media_pb2.Capacity(slots=SLOTS),
            replica="synthetic",
        )

    async def Condition(self, request: Any, context: Any) -> score_pb2.ConditionResponse:
        conditioning = score_pb2.Conditioning(checkpoint="synthetic")
        return score_pb2.ConditionResponse(conditioning=conditioning)

    async def Denoise(
        self, request_iterator: AsyncIterator[score_pb2.DenoiseRequest], context: Any
    ) -> AsyncIterator[score_pb2.DenoiseResponse]:
        async for request in request_iterator:
            match request.WhichOneof("message"):
                case "attach":
                    attached = score_pb2.DenoiseAttached(
                        spec=spec_to_proto(self._stream.spec),
                        checkpoint="synthetic",
                        tail=self._tail,
                        replica="synthetic",
                        capacity=media_pb2.Capacity(slots=SLOTS),
                    )
                    yield score_pb2.DenoiseResponse(attached=attached)
                case "chunk":
                    await asyncio.sleep(self._stream.score_seconds)
                    turn, chunk = request.chunk.turn, request.chunk.chunk
                    latents = media_pb2.Latents(turn=turn, chunk=chunk, tensor=self._tensor)
                    yield score_pb2.DenoiseResponse(latents=latents)


class SyntheticVae(VaeServiceServicer):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        picture = EncodedPicture(Codec.H264, key_frame=True, payload=bytes(stream.picture_bytes))
        self._picture = picture.to_proto()

    async def Describe(self, request: Any, context: Any) -> vae_pb2.VaeServiceDescribeResponse:
        channels, _, height, _ = self._stream.latent_shape
        return vae_pb2.VaeServiceDescribeResponse(
            checkpoint="synthetic",
            latent_channels=channels,
            spatial_stride=self._stream.spec.height // height,
            frames_per_latent=self._stream.spec.frames_per_latent,
            tail_latents=38,
            capacity=media_pb2.Capacity(slots=SLOTS),
            replica="synthetic",
        )

    async def Encode(self, request: Any, context: Any) -> vae_pb2.EncodeResponse:
        channels, _, height, width = self._stream.latent_shape
        anchor = Tensor.from_array(np.zeros((channels, 1, height, width), np.float32))
        return vae_pb2.EncodeResponse(anchor=anchor.to_proto(), checkpoint="synthetic")

    async def Decode(
        self, request_iterator: AsyncIterator[vae_pb2.DecodeRequest], context: Any
    ) -> AsyncIterator[vae_pb2.DecodeResponse]:
        spec = self._stream.spec
        async for request in request_iterator:
            match request.WhichOneof("message"):
                case "attach":
                    attached = vae_pb2.DecodeAttached(
                        checkpoint="synthetic",
                        tail_latents=38,
                        replica="synthetic",
                        capacity=media_pb2.Capacity(slots=SLOTS),
                        video=request.attach.video,
                    )
                    yield vae_pb2.DecodeResponse(attached=attached)
                case "chunk":
                    await asyncio.sleep(self._stream.vae_seconds)
                    turn, chunk = request.chunk.latents.turn, request.chunk.latents.chunk
                    first = spec.first_frame(chunk)
                    for number in range(first, first + spec.frames_per_chunk):
                        frame = media_pb2.VideoFrame(
                            turn=turn, chunk=chunk, frame=number, encoded=self._picture
                        )
                        yield vae_pb2.DecodeResponse(frame=frame)


@asynccontextmanager
async def engines(stream: Stream) -> AsyncIterator[tuple[str, str]]:
    """Addresses of a score and a VAE that serve while entered."""
    adders = (
        partial(add_ScoreServiceServicer_to_server, SyntheticScore(stream)),
        partial(add_VaeServiceServicer_to_server, SyntheticVae(stream)),
    )
    async with AsyncExitStack() as stack:
        score, vae = [
            await stack.enter_async_context(
                Server(
                    Listen(port=0, notice_seconds=0, drain_seconds=0),
                    [Service("engine", add)],
                    drain=Drain(0),
                    metrics=RpcMetrics(CollectorRegistry()),
                    tracing=Tracing("engine", Telemetry()),
                    checks={},
                )
            )
            for add in adders
        ]
        yield f"127.0.0.1:{score.port}", f"127.0.0.1:{vae.port}"
