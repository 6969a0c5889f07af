"""The VAE's contract over the engine: `VaeService`.

On the path: gateway → **servicer** → driver → engine. Translates, and keeps of an attachment only
what the wire needs: which chunk is next, what is owed, and the encoder. Who holds the gRPC server
(Ray Serve, or a server of ours in tests) does not matter here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import structlog

from services.runtime.attachments import Attachment, Attachments
from services.runtime.token import FleetToken
from services.vae.driver import Driver
from services.vae.engine import Engine
from services.vae.session import Decoded, Opening, Ready
from services.vae.stream import Stream
from services.vae.tally import Tally
from services.vae.wire import Reader, encoder_for, pixels_for, tensor_to_proto
from talkingmachines import duration
from talkingmachines.errors import BadInput
from talkingmachines.picture import PixelFormat, VideoFormat, VideoSettings
from talkingmachines.v1 import media_pb2, vae_pb2
from talkingmachines.v1.vae_pb2_grpc import VaeServiceServicer

_log = structlog.stdlib.get_logger(__name__)

_Attachment = Attachment[vae_pb2.DecodeRequest, Ready | Decoded]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers."""

    checkpoint: str  # names the weights and their configuration
    replica: str  # for logs


class VaeServicer(VaeServiceServicer):
    """Args: defaults: of encoders, where the caller leaves a value open; none of them 0."""

    def __init__(
        self,
        engine: Engine,
        driver: Driver,
        attachments: Attachments[vae_pb2.DecodeRequest, Ready | Decoded],
        *,
        identity: Identity,
        defaults: VideoSettings,
        token: FleetToken,
        tally: Tally,
    ) -> None:
        self._engine, self._driver, self._attachments = engine, driver, attachments
        self._identity, self._defaults, self._token = identity, defaults, token
        self._tally = tally
        self._reader = Reader(engine.config, reach=engine.reach)

    async def Describe(
        self, request: vae_pb2.VaeServiceDescribeRequest, context: Any
    ) -> vae_pb2.VaeServiceDescribeResponse:
        self._token.check(context)
        size = 0
        if request.width or request.height:
            self._reader.check_size(request.height, request.width)
            size = self._engine.session_bytes(request.height, request.width)
        return vae_pb2.VaeServiceDescribeResponse(
            checkpoint=self._identity.checkpoint,
            latent_channels=self._engine.config.latent_channels,
            spatial_stride=self._engine.config.spatial_stride,
            frames_per_latent=self._engine.frames_per_latent,
            tail_latents=self._engine.reach,
            session_bytes=size,
            capacity=self._attachments.capacity(),
            replica=self._identity.replica,
        )

    async def Encode(self, request: vae_pb2.EncodeRequest, context: Any) -> vae_pb2.EncodeResponse:
        self._token.check(context)
        anchor = await self._driver.encode(self._reader.picture(request.image))
        return vae_pb2.EncodeResponse(
            anchor=tensor_to_proto(anchor), checkpoint=self._identity.checkpoint
        )

    async def Decode(
        self, request_iterator: AsyncIterator[vae_pb2.DecodeRequest], context: Any
    ) -> AsyncIterator[vae_pb2.DecodeResponse]:
        self._token.check(context)
        async with (
            self._attachments.attach(request_iterator) as attachment,
            self._stream(attachment) as stream,
            aclosing(attachment.events(owing=stream.owing)) as events,
        ):
            async for event in events:
                match event:
                    case vae_pb2.DecodeRequest():
                        await stream.take(event)
                    case Ready():
                        if stream.began(event):
                            attached = self._attached(attachment, stream.video)
                            yield vae_pb2.DecodeResponse(attached=attached)
                    case Decoded():
                        for frame in await stream.frames(event):
                            yield vae_pb2.DecodeResponse(frame=frame)
                    case media_pb2.HandOver():
                        yield vae_pb2.DecodeResponse(hand_over=event)

    @asynccontextmanager
    async def _stream(self, attachment: _Attachment) -> AsyncGenerator[Stream, None]:
        """The session that the attachment's first message asks for, until left."""
        header = await attachment.header()
        if (kind := header.WhichOneof("message")) != "attach":
            raise BadInput("message", got=kind, expected="attach, before anything else")
        if not header.attach.tail.next_chunk:
            self._attachments.begin()
        # The loop has frames of others to send while dozens of latents are unpacked.
        attach = await asyncio.to_thread(self._reader.attach, header.attach)
        video = _complete(attach.video, self._defaults)
        encoder = await asyncio.to_thread(encoder_for, video, attach.spec)
        opening = Opening(
            spec=attach.spec,
            pixels=pixels_for(video, attach.spec),
            anchor=attach.anchor,
            tail=attach.tail.latents,
            next_chunk=attach.tail.next_chunk,
            # What others need within a chunk's time goes between the pieces of a rebuild.
            deadline=monotonic() + attach.spec.chunk_seconds,
        )
        async with self._driver.session(opening, attachment) as session:
            _log.info("attached", session=attach.session_id, next_chunk=opening.next_chunk)
            yield Stream(session, attach, video, encoder, reader=self._reader, tally=self._tally)

    def _attached(self, attachment: _Attachment, video: VideoFormat) -> vae_pb2.DecodeAttached:
        attachment.establish()
        return vae_pb2.DecodeAttached(
            checkpoint=self._identity.checkpoint,
            tail_latents=self._engine.reach,
            max_age=duration.to_proto(attachment.max_age),
            replica=self._identity.replica,
            video=video.to_proto(),
            capacity=self._attachments.capacity(),
        )


def _complete(video: VideoFormat, defaults: VideoSettings) -> VideoFormat:
    """The asked format with the defaults filled in."""
    if isinstance(video.form, PixelFormat):
        return video
    return VideoFormat(video.form, video.settings.over(defaults))
