"""What differs between attachments to score and to the VAE: their messages, and how they count.

On the path: attachment → **wires** → link. The only file of the pipeline that knows both services'
messages; `attachment` knows neither.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from services.gateway.chunk import Chunk, Rewind
from services.gateway.link import Call
from services.gateway.log import SessionLog, TailLength
from services.gateway.replicas import Replica
from services.runtime.metrics import Engine, Stage
from talkingmachines import duration
from talkingmachines.errors import EngineFailure, Unavailable
from talkingmachines.media import Latents, LogTail, spec_to_proto
from talkingmachines.picture import VideoFormat, VideoFrame
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import media_pb2, score_pb2, vae_pb2

if TYPE_CHECKING:  # classes that only the stubs' types have
    from talkingmachines.v1.score_pb2_grpc import ScoreServiceAsyncStub
    from talkingmachines.v1.vae_pb2_grpc import VaeServiceAsyncStub


class HasChunk(Protocol):
    """What a stage is given: one chunk's worth of work."""

    @property
    def turn(self) -> int: ...
    @property
    def chunk(self) -> int: ...


I = TypeVar("I", bound=HasChunk, contravariant=True)  # noqa: E741  an item: a stage's work
A = TypeVar("A", bound=HasChunk)  # an answer: what a stage gives


@dataclass(frozen=True, slots=True)
class Due:
    """What is sent along with a chunk's work."""

    slack: float  # seconds until it is due; negative: late already
    first_place: int  # the first answer that is wanted
    trace: str  # context of the chunk's span; empty: it has none


class Wire(Protocol[I, A]):
    """One session's messages to one kind of engine.

    Places number the answers of a session without a gap: one per chunk from score, one per frame
    from the VAE.
    """

    engine: Engine
    stage: Stage

    def connect(self, requests: AsyncIterator[Any]) -> Call[Any]: ...
    def attach(self, next_chunk: int, slack: float | None) -> Any: ...
    def item(self, item: I, due: Due) -> Any: ...
    def rewind(self, turn: int, next_chunk: int) -> Any: ...
    def attached(self, reply: Any) -> Replica:
        """The replica, when `reply` says that the attachment stands.

        Raises:
            EngineFailure: it says something else.
            Unavailable: the replica has loaded another checkpoint than the session runs with.
        """

    def read(self, reply: Any) -> A | media_pb2.HandOver: ...
    def restart(self, rewind: Rewind) -> tuple[int, int]:
        """The chunk and the place at which this stage goes on after a rewind."""

    def first_place(self, chunk: int) -> int: ...
    def place(self, answer: A) -> int: ...


@dataclass(slots=True)
class ScoreWire:
    """Chunks in, latents out: one answer for each."""

    stub: ScoreServiceAsyncStub
    session_id: str
    conditioning: score_pb2.Conditioning
    checkpoint: str
    seed: int
    log: SessionLog
    tail: TailLength
    engine: Engine = Engine.SCORE
    stage: Stage = Stage.SCORE

    def connect(
        self, requests: AsyncIterator[score_pb2.DenoiseRequest]
    ) -> Call[score_pb2.DenoiseResponse]:
        return self.stub.Denoise(requests)

    def attach(self, next_chunk: int, slack: float | None) -> score_pb2.DenoiseRequest:
        tail = self.log.tail(next_chunk, self.tail)
        attach = score_pb2.DenoiseAttach(
            session_id=self.session_id,
            conditioning=self.conditioning,
            seed=self.seed,
            tail=None if tail is None else tail.to_proto(),
            slack=None if slack is None else duration.to_proto(slack),
        )
        return score_pb2.DenoiseRequest(attach=attach)

    def item(self, item: Chunk, due: Due) -> score_pb2.DenoiseRequest:
        chunk = item.to_proto(due.slack)
        chunk.traceparent = due.trace
        return score_pb2.DenoiseRequest(chunk=chunk)

    def rewind(self, turn: int, next_chunk: int) -> score_pb2.DenoiseRequest:
        tail = _tail(self.log, next_chunk, self.tail)
        return score_pb2.DenoiseRequest(rewind=score_pb2.DenoiseRewind(turn=turn, tail=tail))

    def attached(self, reply: score_pb2.DenoiseResponse) -> Replica:
        return _attached(reply, expected=self.checkpoint)

    def read(self, reply: score_pb2.DenoiseResponse) -> Latents | media_pb2.HandOver:
        if reply.HasField("hand_over"):
            return reply.hand_over
        return Latents.from_proto(reply.latents, at="latents")

    def restart(self, rewind: Rewind) -> tuple[int, int]:
        return rewind.next_chunk, rewind.next_chunk

    def first_place(self, chunk: int) -> int:
        return chunk

    def place(self, answer: Latents) -> int:
        return answer.chunk


@dataclass(slots=True)
class VaeWire:
    """Latents in, frames out: as many as a chunk has."""

    stub: VaeServiceAsyncStub
    session_id: str
    spec: StreamSpec
    anchor: media_pb2.Tensor
    checkpoint: str
    video: VideoFormat
    log: SessionLog
    tail: TailLength
    engine: Engine = Engine.VAE
    stage: Stage = Stage.VAE

    def connect(
        self, requests: AsyncIterator[vae_pb2.DecodeRequest]
    ) -> Call[vae_pb2.DecodeResponse]:
        return self.stub.Decode(requests)

    def attach(self, next_chunk: int, slack: float | None) -> vae_pb2.DecodeRequest:
        del slack  # the first chunk carries its own
        tail = self.log.tail(next_chunk, self.tail)
        attach = vae_pb2.DecodeAttach(
            session_id=self.session_id,
            spec=spec_to_proto(self.spec),
            anchor=self.anchor,
            video=self.video.to_proto(),
            tail=None if tail is None else tail.to_proto(),
        )
        return vae_pb2.DecodeRequest(attach=attach)

    def item(self, item: Latents, due: Due) -> vae_pb2.DecodeRequest:
        request = vae_pb2.DecodeRequest()
        chunk = request.chunk
        item.put_into(chunk.latents)
        chunk.slack.CopyFrom(duration.to_proto(due.slack))
        chunk.skip_frames = max(0, due.first_place - self.first_place(item.chunk))
        chunk.traceparent = due.trace
        return request

    def rewind(self, turn: int, next_chunk: int) -> vae_pb2.DecodeRequest:
        tail = _tail(self.log, next_chunk, self.tail)
        return vae_pb2.DecodeRequest(rewind=vae_pb2.DecodeRewind(turn=turn, tail=tail))

    def attached(self, reply: vae_pb2.DecodeResponse) -> Replica:
        replica = _attached(reply, expected=self.checkpoint)
        if reply.attached.HasField("video"):  # with the replica's defaults filled in
            self.video = VideoFormat.from_proto(reply.attached.video, at="attached.video")
        return replica

    def read(self, reply: vae_pb2.DecodeResponse) -> VideoFrame | media_pb2.HandOver:
        if reply.HasField("hand_over"):
            return reply.hand_over
        return VideoFrame.from_proto(reply.frame, at="frame")

    def restart(self, rewind: Rewind) -> tuple[int, int]:
        return rewind.decode_from, rewind.first_frame

    def first_place(self, chunk: int) -> int:
        return self.spec.first_frame(chunk)

    def place(self, answer: VideoFrame) -> int:
        return answer.frame


def _attached(
    reply: score_pb2.DenoiseResponse | vae_pb2.DecodeResponse, *, expected: str
) -> Replica:
    if not reply.HasField("attached"):
        kind = reply.WhichOneof("message")
        raise EngineFailure(f"an attachment that begins with {kind or 'nothing'}")
    got = reply.attached.checkpoint
    if got != expected:
        what = f"a replica with checkpoint {expected} (one has {got})"
        raise Unavailable(what, retry_after=1.0)
    return Replica(reply.attached.replica, reply.attached.capacity.slots)


def _tail(log: SessionLog, next_chunk: int, length: TailLength) -> media_pb2.LogTail:
    return (log.tail(next_chunk, length) or LogTail(0)).to_proto()
