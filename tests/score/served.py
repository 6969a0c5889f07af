"""A small score replica that serves, and a caller who keeps to the contract unless told not to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from services.runtime.attachments import Terms
from services.runtime.channel import open_channel
from services.runtime.drain import Drain
from services.runtime.metrics import RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Endpoint, Listen, Peer, Telemetry
from services.runtime.tracing import Tracing
from services.score.checkpoint.loading import save, save_front_end
from services.score.checkpoint.opening import open_checkpoint
from services.score.config import DitConfig
from services.score.contract import LogTail, Mode, PastChunk, Rectangle, Speech
from services.score.engine import Engine, Limits
from services.score.machine import load
from services.score.replica import NAME, Replica, replica
from services.score.settings import Settings
from talkingmachines import duration, media
from talkingmachines.v1 import media_pb2, score_pb2
from talkingmachines.v1.score_pb2_grpc import ScoreServiceStub, add_ScoreServiceServicer_to_server
from tests.score import calls, small
from tests.score.calls import Call

WAIT = 20.0  # seconds, for whatever is certain to come


def write_checkpoint(folder: Path, config: DitConfig | None = None) -> Path:
    config = config or small.config()
    ears = calls.ears(config)
    save(folder, config, small.model(config).state_dict().items())
    if ears is not None:
        save_front_end(folder, ears)
    return folder


def settings(folder: Path, **changes: Any) -> Settings:
    made: dict[str, Any] = {
        "model": folder,
        "endpoint": Endpoint(),
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "sessions": 3,
        "terms": Terms(header_seconds=1.0),
    }
    return Settings(**(made | changes))


def engine(folder: Path) -> Engine:
    """What the replica should equal."""
    return load(open_checkpoint(folder), small.CPU, limits=Limits(), dtype=torch.float32)


@dataclass
class Running:
    stub: Any
    replica: Replica
    server: Server
    drain: Drain
    registry: CollectorRegistry
    channel: grpc.aio.Channel

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, {"engine": "score", **labels}) or 0.0

    async def until(self, sessions: int) -> None:
        """Wait until no more attachments than these are left."""
        async with asyncio.timeout(WAIT):
            while (await self.describe()).capacity.sessions > sessions:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def describe(self) -> score_pb2.ScoreServiceDescribeResponse:
        answer = await self.stub.Describe(score_pb2.ScoreServiceDescribeRequest())
        assert isinstance(answer, score_pb2.ScoreServiceDescribeResponse)
        return answer


@asynccontextmanager
async def serving(chosen: Settings, *, port: int = 0) -> AsyncIterator[Running]:
    """The replica on a real gRPC server, at any port or at the one that another had."""
    drain, registry = Drain(5.0), CollectorRegistry()
    async with AsyncExitStack() as stack:
        tracing = stack.enter_context(Tracing("score", Telemetry()))
        made = await stack.enter_async_context(
            replica(chosen, drain=drain, registry=registry, tracing=tracing)
        )
        server = Server(
            Listen(port=port, notice_seconds=0),
            [Service(NAME, partial(add_ScoreServiceServicer_to_server, made.servicer))],
            drain=drain,
            metrics=RpcMetrics(registry),
            tracing=tracing,
            checks={"engine": made.unhealthy},
        )
        await stack.enter_async_context(server)
        channel = await stack.enter_async_context(
            open_channel(Peer(address=f"127.0.0.1:{server.port}"))
        )
        yield Running(ScoreServiceStub(channel), made, server, drain, registry, channel)


class Caller:
    """One attachment of a call, as a gateway holds it; the log is the call's."""

    def __init__(self, stub: Any, call: Call, checkpoint: str, **kwargs: Any) -> None:
        self.call, self._checkpoint = call, checkpoint
        self._requests: asyncio.Queue[score_pb2.DenoiseRequest | None] = asyncio.Queue()
        self.rpc = stub.Denoise(self._sent(), **kwargs)
        self._responses = aiter(self.rpc)
        self.attached: score_pb2.DenoiseAttached | None = None

    def send(self, **message: Any) -> None:
        self._requests.put_nowait(score_pb2.DenoiseRequest(**message))

    def half_close(self) -> None:
        self._requests.put_nowait(None)

    async def attach(self, **changes: Any) -> Caller:
        self.send(attach=self.header(**changes))
        response = await self.next()
        assert response.HasField("attached"), response
        self.attached = response.attached
        return self

    def header(self, **changes: Any) -> score_pb2.DenoiseAttach:
        fields: dict[str, Any] = {
            "session_id": self.call.name,
            "conditioning": conditioning(self.call, self._checkpoint),
            "seed": self.call.seed,
            "tail": tail_to_proto(self.tail()),
        }
        return score_pb2.DenoiseAttach(**(fields | changes))

    def tail(self) -> LogTail:
        return LogTail(tuple(self.call.log[-8:]))

    def ask(self, chunk: int | None = None, **changes: Any) -> None:
        """Ask for the log's next chunk, or for `chunk`."""
        number = len(self.call.log) if chunk is None else chunk
        fields: dict[str, Any] = {
            "turn": self.call.turn,
            "chunk": number,
            "speech": speech_to_proto(self.call.speech(number), self.call.config),
            "slack": duration.to_proto(1.0),
        }
        self.send(chunk=score_pb2.DenoiseChunk(**(fields | changes)))

    async def next(self) -> score_pb2.DenoiseResponse:
        async with asyncio.timeout(WAIT):
            response = await anext(self._responses)
        assert isinstance(response, score_pb2.DenoiseResponse)
        return response

    async def read_all(self) -> None:
        """Until the end, which is an error or not."""
        while True:
            await self.next()

    async def latents(self) -> Tensor:
        """The next chunk's, which the log takes."""
        response = await self.next()
        assert response.HasField("latents"), response
        got = media.Latents.from_proto(response.latents, at="latents")
        assert (got.turn, got.chunk) == (self.call.turn, len(self.call.log))
        latents = torch.from_numpy(got.tensor.array().copy())
        self.call.log.append(PastChunk(got.chunk, self.call.speech(got.chunk), latents))
        return latents

    async def draw(self, chunks: int = 1) -> Tensor:
        """[chunks, C, F, h, w], one after the other."""
        drawn = []
        for _ in range(chunks):
            self.ask()
            drawn.append(await self.latents())
        return torch.stack(drawn)

    def rewind(self, turn: int, **changes: Any) -> None:
        """Go on from the end of the log, in `turn`."""
        self.call.turn = turn
        fields: dict[str, Any] = {"turn": turn, "tail": tail_to_proto(self.tail())}
        self.send(rewind=score_pb2.DenoiseRewind(**(fields | changes)))

    async def _sent(self) -> AsyncIterator[score_pb2.DenoiseRequest]:
        while (request := await self._requests.get()) is not None:
            yield request


def conditioning(call: Call, checkpoint: str) -> score_pb2.Conditioning:
    avatar = calls.avatar(call.config, faces=call.faces)
    given = {"anchor": avatar.anchor, "text": avatar.text, "image": avatar.clip}
    given["listening_text"] = avatar.listening_text
    tensors = {name: tensor_to_proto(value) for name, value in given.items() if value is not None}
    faces = []
    for face in avatar.faces:
        assert isinstance(face, Rectangle)
        width, height = face.right - face.left, face.bottom - face.top
        faces.append(media_pb2.Region(x=face.left, y=face.top, width=width, height=height))
    return score_pb2.Conditioning(
        checkpoint=checkpoint, digest=avatar.digest, faces=faces, **tensors
    )


def tensor_to_proto(tensor: Tensor) -> media_pb2.Tensor:
    return media.Tensor.from_array(tensor.numpy()).to_proto()


def speech_to_proto(speech: Sequence[Speech], config: DitConfig) -> list[media_pb2.SpeakerSpeech]:
    spec, samples = config.spec, config.spec.samples_per_chunk
    parts = []
    for speaker, said in enumerate(speech):
        mode = media.Mode.SPEAKING if said.mode is Mode.SPEAKING else media.Mode.LISTENING
        chunk = media.Pcm(said.pcm[:samples].tobytes(), spec.sample_rate)
        after = media.Pcm(said.pcm[samples:].tobytes(), spec.sample_rate)
        parts.append(media.SpeakerSpeech(speaker, mode, chunk, after).to_proto())
    return parts


def tail_to_proto(tail: LogTail, config: DitConfig | None = None) -> media_pb2.LogTail:
    config = config or small.config()
    past = []
    for one in tail.chunks:
        message = media_pb2.PastChunk(chunk=one.chunk, speech=speech_to_proto(one.speech, config))
        if one.latents is not None:
            message.latents.chunk = one.chunk
            message.latents.tensor.CopyFrom(tensor_to_proto(one.latents.float()))
        past.append(message)
    return media_pb2.LogTail(next_chunk=tail.next_chunk, chunks=past)
