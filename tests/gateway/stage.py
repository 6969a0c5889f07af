"""A whole session within the process, in virtual time: real pipeline, fake engines, no wire."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from prometheus_client import CollectorRegistry

from services.gateway.attaching import Patience
from services.gateway.attachment import Attachment
from services.gateway.chunker import Chunker
from services.gateway.limits import SessionLimits
from services.gateway.log import SessionLog, TailLength
from services.gateway.outbox import Outbox, Room
from services.gateway.pacer import Lead, Pacer, Position
from services.gateway.parts import Parts
from services.gateway.session import Session
from services.gateway.spans import Spans
from services.gateway.speech import Drive, SpeechSource
from services.gateway.statistics import Standing
from services.gateway.wake import Wake
from services.gateway.wires import ScoreWire, VaeWire
from services.runtime.metrics import GatewayMetrics, SessionState
from services.runtime.settings import Telemetry
from services.runtime.tracing import Tracing
from talkingmachines.media import Pcm, Tensor
from talkingmachines.picture import Codec, PixelFormat, VideoFormat, VideoFrame
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import avatar_pb2, media_pb2, score_pb2, storage_pb2
from tests.fakes.replica import LocalCall
from tests.fakes.score import CHECKPOINT, FakeScore
from tests.fakes.vae import FakeVae

SPEC = StreamSpec(
    sample_rate=8_000,
    fps=25,
    latents_per_chunk=3,
    frames_per_latent=4,
    width=16,
    height=16,
    lookahead_samples=400,
)
HISTORY_SAMPLES = 5_000


def voice(seconds: float, *, rate: int = SPEC.sample_rate, seed: int = 0) -> Pcm:
    noise = np.random.default_rng(seed).integers(-20_000, 20_000, int(seconds * rate), np.int16)
    return Pcm(noise.tobytes(), rate)


class LocalScore:
    """The stub of a score service within the process."""

    def __init__(self, servicer: FakeScore) -> None:
        self._servicer = servicer

    def Denoise(self, requests: AsyncIterator[Any]) -> LocalCall[score_pb2.DenoiseResponse]:
        return LocalCall(self._servicer.Denoise(requests, None))


class LocalVae:
    def __init__(self, servicer: FakeVae) -> None:
        self._servicer = servicer

    def Decode(self, requests: AsyncIterator[Any]) -> LocalCall[Any]:
        return LocalCall(self._servicer.Decode(requests, None))


class NoJournal:
    def wrote(self, chunk: int) -> None: ...
    def told(self) -> None: ...
    def said(self, conversation: storage_pb2.Conversation) -> None: ...


@dataclass
class Client:
    """Collects what a session sends, as a client that reads at once."""

    frames: list[VideoFrame] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    sounds: list[Pcm] = field(default_factory=list)
    events: list[avatar_pb2.TalkResponse] = field(default_factory=list)

    reading: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    _more: Wake = field(default_factory=Wake, compare=False)

    async def has(self, number: int) -> None:
        while not self.frames or self.frames[-1].frame < number:
            await self._more.wait()

    async def read(self, outbox: Outbox) -> None:
        clock = asyncio.get_running_loop().time
        self.reading.set()
        async for item in outbox:
            await self.reading.wait()
            match item:
                case VideoFrame():
                    self.frames.append(item)
                    self.times.append(clock())
                    self._more.give()
                case Pcm():
                    self.sounds.append(item)
                case _:
                    self.events.append(item)

    def told(self, kind: str) -> list[Any]:
        return [
            getattr(event, kind) for event in self.events if event.WhichOneof("message") == kind
        ]

    @property
    def sound(self) -> bytes:
        return b"".join(pcm.samples for pcm in self.sounds)

    @property
    def pictures(self) -> list[str]:
        return [
            f"{frame.frame} {hashlib.sha256(repr(frame.picture).encode()).hexdigest()[:12]}"
            for frame in self.frames
        ]


@dataclass
class Stage:
    score: FakeScore
    vae: FakeVae
    session: Session
    parts: Parts
    client: Client
    requests: asyncio.Queue[avatar_pb2.TalkRequest | None]
    metrics: GatewayMetrics
    registry: CollectorRegistry

    def send(self, **message: Any) -> None:
        self.requests.put_nowait(avatar_pb2.TalkRequest(**message))

    def say(self, pcm: Pcm, *, pieces: int = 10**9, end: bool = True) -> None:
        for start in range(0, len(pcm), pieces):
            part = pcm.part(start, start + pieces)
            message = media_pb2.Pcm(samples=part.samples, sample_rate=pcm.sample_rate)
            self.send(audio=message)
        if end:
            self.send(end_of_speech=avatar_pb2.EndOfSpeech())

    def hang_up(self) -> None:
        self.requests.put_nowait(None)

    async def frame(self, number: int) -> None:
        """Wait until the client has a frame."""
        await self.client.has(number)


@asynccontextmanager
async def stage(
    *,
    seed: int = 7,
    video: PixelFormat | Codec = PixelFormat.RGB24,
    limits: SessionLimits | None = None,
    patience: Patience | None = None,
    lead: Lead | None = None,
    room: Room | None = None,
    prepare: Callable[[FakeScore, FakeVae], None] = lambda _score, _vae: None,
    work_seconds: float = 0.05,
    spec: StreamSpec = SPEC,
    tail_latents: int = 8,
    source: Callable[[Session], SpeechSource] = Drive,
    tracing: Tracing | None = None,
) -> AsyncIterator[Stage]:
    """A session whose client reads; leaving waits for the session's end and raises its error."""
    score = FakeScore(spec, history_samples=HISTORY_SAMPLES)
    vae = FakeVae(tail_latents=tail_latents)
    score.replica.work_seconds = vae.replica.work_seconds = work_seconds
    prepare(score, vae)
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    anchor = Tensor.from_array(np.full((4, 1, 2, 2), seed)).to_proto()
    faces = [media_pb2.Region(width=1, height=1)] * 2
    conditioning = score_pb2.Conditioning(checkpoint=CHECKPOINT, anchor=anchor, faces=faces)
    log, chunker = SessionLog(spec), Chunker(spec, speakers=2)
    outbox = Outbox(room or Room())
    spans = Spans(tracing or Tracing("gateway", Telemetry()))
    pacer = Pacer(
        spec,
        log,
        chunker,
        outbox,
        lead=lead or Lead(),
        keep=4,
        metrics=metrics,
        spans=spans,
        start=Position(0, 0),
        opened_at=0.0,
    )
    score_wire = ScoreWire(
        cast(Any, LocalScore(score)),
        "s",
        conditioning,
        CHECKPOINT,
        seed,
        log,
        TailLength(1, score.tail.speech_chunks),
    )
    vae_wire = VaeWire(
        cast(Any, LocalVae(vae)),
        "s",
        spec,
        anchor,
        vae.checkpoint,
        VideoFormat(video),
        log,
        TailLength(-(-tail_latents // spec.latents_per_chunk)),
    )
    waits = patience or Patience()
    kit: dict[str, Any] = {
        "slack": pacer.slack,
        "patience": waits,
        "metrics": metrics,
        "spans": spans,
        "seen": lambda _engine, _replica: None,
    }
    parts = Parts(
        log=log,
        chunker=chunker,
        pacer=pacer,
        score=Attachment(score_wire, log, **kit),
        vae=Attachment(vae_wire, log, **kit),
        vae_wire=vae_wire,
        outbox=outbox,
        journal=NoJournal(),
        spans=spans,
    )
    standing = Standing(metrics, SessionState.LISTENING)
    session = Session(parts, limits or SessionLimits(), standing)
    outbox.need_key_frame = session.ask_key_frame
    client = Client()
    requests: asyncio.Queue[avatar_pb2.TalkRequest | None] = asyncio.Queue()

    async def sent() -> AsyncIterator[avatar_pb2.TalkRequest]:
        while (request := await requests.get()) is not None:
            yield request

    await parts.score.open(running=False)
    await parts.vae.open(running=False)
    running = asyncio.create_task(session.run(sent(), source(session)))
    reading = asyncio.create_task(client.read(outbox))
    try:
        yield Stage(score, vae, session, parts, client, requests, metrics, registry)
        await running
    finally:
        running.cancel()
        outbox.close()
        client.reading.set()
        await asyncio.gather(reading, parts.score.close(), parts.vae.close())
        await asyncio.gather(running, return_exceptions=True)
        spans.cut_off()
    assert score.replica.running == 0
    assert vae.replica.running == 0
