"""`ScoreService` on the wire: it translates, the engine thinks.

On the path: wire → attachments → **servicer** → driver → engine, and back. Runs on a gRPC server of
ours and under Ray Serve's alike.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from services.runtime.attachments import Attachment, Attachments
from services.runtime.device import DeviceThread
from services.runtime.logs import about
from services.runtime.token import FleetToken
from services.score import wire
from services.score.config import DitConfig
from services.score.driver import Answer, Driver, Session
from services.score.encoders.conditioning import Embeddings, Encoders
from talkingmachines import duration
from talkingmachines.errors import BadInput
from talkingmachines.media import spec_to_proto
from talkingmachines.v1 import media_pb2, score_pb2
from talkingmachines.v1.score_pb2_grpc import ScoreServiceServicer

_log = structlog.stdlib.get_logger(__name__)

_Attachment = Attachment[score_pb2.DenoiseRequest, Answer]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is loaded, and who tells of it."""

    config: DitConfig
    checkpoint: str  # its name
    most_faces: int
    replica: str  # for logs


@dataclass(frozen=True, slots=True)
class Embedder:
    """What makes embeddings of new avatars, on a thread beside the one that draws."""

    encoders: Encoders
    thread: DeviceThread
    prompt: str  # for avatars that were given none
    listening_prompt: str


class ScoreServicer(ScoreServiceServicer):
    """Serves one replica's engine."""

    def __init__(
        self,
        loaded: Loaded,
        driver: Driver,
        attachments: Attachments[score_pb2.DenoiseRequest, Answer],
        token: FleetToken,
        embedder: Embedder | None = None,
    ) -> None:
        self._loaded, self._driver, self._embedder = loaded, driver, embedder
        self._attachments, self._token = attachments, token
        self._reader = wire.Reader(
            loaded.config, checkpoint=loaded.checkpoint, most_faces=loaded.most_faces
        )

    async def Describe(
        self, request: score_pb2.ScoreServiceDescribeRequest, context: Any
    ) -> score_pb2.ScoreServiceDescribeResponse:
        self._token.check(context)
        config = self._loaded.config
        return score_pb2.ScoreServiceDescribeResponse(
            checkpoint=self._loaded.checkpoint,
            spec=spec_to_proto(config.spec),
            latent_shape=wire.latent_shape(config),
            takes_prompt=config.text is not None,
            max_speakers=self._loaded.most_faces,
            tail=wire.tail_length(config),
            capacity=self._attachments.capacity(),
            replica=self._loaded.replica,
        )

    async def Condition(
        self, request: score_pb2.ConditionRequest, context: Any
    ) -> score_pb2.ConditionResponse:
        self._token.check(context)
        config = self._loaded.config
        for name in ("prompt", "listening_prompt"):
            if getattr(request, name) and config.text is None:
                raise BadInput(name, got="a prompt", expected="none: this checkpoint reads no text")
        conditioning = score_pb2.Conditioning(checkpoint=self._loaded.checkpoint)
        if config.text is not None or config.clip is not None:
            wire.embed(conditioning, await self._embed(request))
        return score_pb2.ConditionResponse(conditioning=conditioning)

    async def _embed(self, request: score_pb2.ConditionRequest) -> Embeddings:
        """What the checkpoint reads of a new avatar's prompts and picture."""
        if (embedder := self._embedder) is None:
            raise BadInput(
                "image",
                got="an avatar to be conditioned",
                expected="its embeddings, made elsewhere: no text or image encoder is loaded "
                "(TM_SCORE_ENCODERS__FOLDER)",
            )
        picture = wire.picture(request.image)
        prompts = (request.prompt, request.listening_prompt)
        if not any(prompts):
            prompts = (embedder.prompt, embedder.listening_prompt)
        speaking, listening = prompts[0] or embedder.prompt, prompts[1]
        embed = partial(embedder.encoders.embed, picture, speaking, listening)
        return await embedder.thread.run(embed)

    async def Denoise(
        self, request_iterator: AsyncIterator[score_pb2.DenoiseRequest], context: Any
    ) -> AsyncIterator[score_pb2.DenoiseResponse]:
        self._token.check(context)
        async with self._attachments.attach(request_iterator) as attachment:
            header = await attachment.header()
            if header.WhichOneof("message") != "attach":
                got = header.WhichOneof("message")
                raise BadInput("message", got=got, expected="attach first")
            if not header.attach.tail.next_chunk:
                self._attachments.begin()
            attach = self._reader.attach(header.attach)
            with about(session=attach.session_id):
                async with (
                    self._driver.session(
                        attach.avatar, seed=attach.seed, tail=attach.tail, receiver=attachment
                    ) as session,
                    aclosing(self._converse(attachment, session)) as responses,
                ):
                    async for response in responses:
                        yield response

    async def _converse(
        self, attachment: _Attachment, session: Session
    ) -> AsyncGenerator[score_pb2.DenoiseResponse, None]:
        """All that an attachment that stands is told."""
        attachment.establish()
        yield score_pb2.DenoiseResponse(attached=self._attached(attachment))
        events = attachment.events(owing=lambda: session.unanswered > 0)
        async with aclosing(events):
            async for event in events:
                match event:
                    case Answer(drawn=drawn):
                        latents = wire.latents_to_proto(drawn)
                        yield score_pb2.DenoiseResponse(latents=latents)
                    case media_pb2.HandOver():
                        yield score_pb2.DenoiseResponse(hand_over=event)
                    case _:
                        await self._heed(event, session)

    async def _heed(self, request: score_pb2.DenoiseRequest, session: Session) -> None:
        match request.WhichOneof("message"):
            case "chunk":
                chunk = self._reader.chunk(request.chunk, faces=session.faces)
                session.ask(chunk, trace=request.chunk.traceparent)
            case "rewind":
                tail = self._reader.tail(request.rewind.tail, faces=session.faces, at="rewind.tail")
                await session.rewind(request.rewind.turn, tail)
            case other:
                got = other or "nothing"
                raise BadInput("message", got=got, expected="a chunk or a rewind, after attaching")

    def _attached(self, attachment: _Attachment) -> score_pb2.DenoiseAttached:
        config = self._loaded.config
        return score_pb2.DenoiseAttached(
            spec=spec_to_proto(config.spec),
            checkpoint=self._loaded.checkpoint,
            tail=wire.tail_length(config),
            max_age=duration.to_proto(attachment.max_age),
            replica=self._loaded.replica,
            capacity=self._attachments.capacity(),
        )
