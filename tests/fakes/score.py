"""A score service whose latents are a hash of all that may shape them.

It keeps to the contract to the letter and refuses whoever does not: one wrong sample, one missing
latent, one chunk out of order, and the picture differs or the attachment ends with an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from talkingmachines import duration
from talkingmachines.errors import BadInput
from talkingmachines.media import Latents, LogTail, Tensor, spec_to_proto
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import media_pb2, score_pb2
from talkingmachines.v1.score_pb2_grpc import ScoreServiceServicer
from tests.fakes.replica import Replica

CHECKPOINT = "fake-score-1"


class FakeScore(ScoreServiceServicer):
    def __init__(
        self,
        spec: StreamSpec,
        *,
        history_samples: int = 0,
        tail_chunks: int = 1,
        takes_prompt: bool = False,
        max_speakers: int = 4,
    ) -> None:
        self.spec = spec
        self.history_samples = history_samples  # of speech that shape the next chunk
        self.tail = score_pb2.LogTailLength(
            latent_chunks=tail_chunks,
            speech_chunks=max(tail_chunks, -(-history_samples // spec.samples_per_chunk)),
        )
        self.shape = (4, spec.latents_per_chunk, 2, 2)
        self.takes_prompt = takes_prompt
        self.max_speakers = max_speakers
        self.replica = Replica()
        self.slacks: list[float] = []
        self.traces: list[str] = []

    async def Describe(
        self, request: score_pb2.ScoreServiceDescribeRequest, context: Any
    ) -> score_pb2.ScoreServiceDescribeResponse:
        return score_pb2.ScoreServiceDescribeResponse(
            checkpoint=CHECKPOINT,
            spec=spec_to_proto(self.spec),
            latent_shape=self.shape,
            takes_prompt=self.takes_prompt,
            max_speakers=self.max_speakers,
            tail=self.tail,
            capacity=self.replica.capacity,
            replica=self.replica.name,
        )

    async def Condition(
        self, request: score_pb2.ConditionRequest, context: Any
    ) -> score_pb2.ConditionResponse:
        if request.prompt and not self.takes_prompt:
            raise BadInput("prompt", got=request.prompt, expected="none")
        conditioning = score_pb2.Conditioning(checkpoint=CHECKPOINT)
        if self.takes_prompt:
            words = np.frombuffer(hashlib.sha256(request.prompt.encode()).digest(), np.uint8)
            text = Tensor.from_array(words[None].astype(np.float32))
            conditioning.text.CopyFrom(text.to_proto())
        return score_pb2.ConditionResponse(conditioning=conditioning)

    async def Denoise(
        self, request_iterator: AsyncIterator[score_pb2.DenoiseRequest], context: Any
    ) -> AsyncIterator[score_pb2.DenoiseResponse]:
        self.replica.called_with(context)
        async with self.replica.attachment(request_iterator) as attachment:
            session: _Session | None = None
            async for event in attachment.events():
                if not isinstance(event, score_pb2.DenoiseRequest):
                    yield score_pb2.DenoiseResponse(hand_over=event)
                    continue
                match event.WhichOneof("message"):
                    case "attach" if session is None:
                        session = _Session(self, event.attach)
                        attached = score_pb2.DenoiseAttached(
                            spec=spec_to_proto(self.spec),
                            checkpoint=CHECKPOINT,
                            tail=self.tail,
                            max_age=duration.to_proto(self.replica.max_age or 0),
                            replica=self.replica.name,
                            capacity=self.replica.capacity,
                        )
                        yield score_pb2.DenoiseResponse(attached=attached)
                    case "chunk" if session is not None:
                        self.slacks.append(duration.from_proto(event.chunk.slack))
                        self.traces.append(event.chunk.traceparent)
                        await attachment.work()
                        latents = session.draw(event.chunk)
                        yield score_pb2.DenoiseResponse(latents=latents.to_proto())
                    case "rewind" if session is not None:
                        session.rewind(event.rewind)
                    case other:
                        raise BadInput("message", got=other, expected="attach once, then chunks")


class _Session:
    def __init__(self, score: FakeScore, attach: score_pb2.DenoiseAttach) -> None:
        if attach.conditioning.checkpoint != CHECKPOINT:
            raise BadInput(
                "attach.conditioning.checkpoint",
                got=attach.conditioning.checkpoint,
                expected=CHECKPOINT,
            )
        self.score = score
        self.seed = attach.seed
        self.anchor = attach.conditioning.anchor.payload
        self.faces = len(attach.conditioning.faces)
        self.turn = 0
        self.latents: list[bytes] = []
        tail = LogTail(0)
        if attach.HasField("tail"):
            tail = LogTail.from_proto(attach.tail, at="attach.tail")
        self._take(tail)

    def rewind(self, rewind: score_pb2.DenoiseRewind) -> None:
        if rewind.turn < self.turn:
            raise BadInput("rewind.turn", got=rewind.turn, expected=f">= {self.turn}")
        self.turn = rewind.turn
        self._take(LogTail.from_proto(rewind.tail, at="rewind.tail"))

    def draw(self, message: score_pb2.DenoiseChunk) -> Latents:
        spec = self.score.spec
        if message.chunk != self.next_chunk or message.turn < self.turn:
            got = f"chunk {message.chunk} of turn {message.turn}"
            expected = f"chunk {self.next_chunk} of turn >= {self.turn}"
            raise BadInput("chunk", got=got, expected=expected)
        self.turn = message.turn
        digest = hashlib.sha256(repr((self.seed, message.chunk)).encode())
        digest.update(b"".join(self.latents) or self.anchor)
        for part in message.speech:
            self._check(part)
            lookahead = part.lookahead.samples.ljust(2 * spec.lookahead_samples, b"\0")
            digest.update(repr((part.speaker, part.mode)).encode() + lookahead)
        heard = self._hear({part.speaker: part.speech.samples for part in message.speech})
        for speaker, samples in sorted(heard.items()):
            digest.update(repr(speaker).encode() + samples)
        latents = self._latents(digest.digest(), message)
        self.latents = [*self.latents, latents.tensor.payload][-self.score.tail.latent_chunks :]
        self.next_chunk += 1
        return latents

    def _latents(self, digest: bytes, message: score_pb2.DenoiseChunk) -> Latents:
        values = np.random.default_rng(list(digest)).standard_normal(self.score.shape)
        values[0, 0, 0, :2] = self.seed, message.chunk  # a mark that can be read
        return Latents(message.turn, message.chunk, Tensor.from_array(values))

    def _take(self, tail: LogTail) -> None:
        length = self.score.tail
        for what, got, most in (
            ("latents", len(tail.latents), length.latent_chunks),
            ("chunks", len(tail.chunks), length.speech_chunks),
        ):
            if got != min(tail.next_chunk, most):
                expected = str(min(tail.next_chunk, most))
                raise BadInput(f"tail.{what}", got=got, expected=expected)
        self.next_chunk = tail.next_chunk
        self.latents = [part.tensor.payload for part in tail.latents]
        self.history: dict[int, bytes] = {}
        for past in tail.chunks:
            self._hear({part.speaker: part.speech.samples for part in past.speech})

    def _hear(self, spoken: dict[int, bytes]) -> dict[int, bytes]:
        """What was heard of every speaker, up to the end of this chunk."""
        size = 2 * self.score.history_samples
        silence = bytes(2 * self.score.spec.samples_per_chunk)
        heard = {
            speaker: self.history.get(speaker, b"").rjust(size, b"\0")
            + spoken.get(speaker, silence)
            for speaker in self.history.keys() | spoken.keys()
        }
        kept = {who: window[-size:] if size else b"" for who, window in heard.items()}
        # Who was silent for the whole history is as if never heard.
        self.history = {who: samples for who, samples in kept.items() if any(samples)}
        return heard

    def _check(self, part: media_pb2.SpeakerSpeech) -> None:
        samples = self.score.spec.samples_per_chunk
        if len(part.speech.samples) != 2 * samples:
            got = f"{len(part.speech.samples)} bytes"
            raise BadInput("chunk.speech", got=got, expected=f"{samples} samples")
        if part.speaker >= self.faces:
            raise BadInput("chunk.speech.speaker", got=part.speaker, expected="a face")
