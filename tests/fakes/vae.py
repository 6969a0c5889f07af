"""A VAE service whose frames are a hash of the latents that may shape them.

Frames carry a mark (seed and chunk of the latents, number of the frame) in their first bytes, so
that a picture that reached the wrong session is known at sight. Encoded frames say which encoder
made them and on which frame they depend.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from talkingmachines import duration
from talkingmachines.errors import BadInput
from talkingmachines.media import Latents, LogTail, Tensor, spec_from_proto
from talkingmachines.picture import (
    Codec,
    EncodedPicture,
    PixelFormat,
    RawPicture,
    VideoFormat,
    VideoFrame,
)
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import vae_pb2
from talkingmachines.v1.vae_pb2_grpc import VaeServiceServicer
from tests.fakes.replica import Replica

_MARK = struct.Struct("<qqq")
_LINK = struct.Struct("<qq?")


class Mark(NamedTuple):
    """What a frame says about itself."""

    seed: int
    chunk: int
    frame: int


def mark(picture: RawPicture | EncodedPicture) -> Mark:
    payload = picture.pixels if isinstance(picture, RawPicture) else picture.payload
    return Mark(*_MARK.unpack_from(payload))


def dependence(picture: EncodedPicture) -> tuple[int, int, bool]:
    """The encoder that made it, its place in that encoder's output, whether it is a key frame."""
    encoder, index, key = _LINK.unpack_from(picture.payload, _MARK.size)
    return encoder, index, key


class Film(Protocol):
    """An encoder of frames that anybody can decode."""

    def frame(self, number: int, *, key: bool) -> EncodedPicture: ...


class FakeVae(VaeServiceServicer):
    """Args:
    film: makes encoders whose frames really are of the codec asked for; told the anchor besides.
    """

    def __init__(
        self,
        *,
        tail_latents: int = 8,
        frames_per_latent: int = 4,
        film: Callable[[VideoFormat, StreamSpec, bytes], Film] | None = None,
    ) -> None:
        self.film = film
        self.anchor_of: Callable[[RawPicture], NDArray[Any]] = self._digest
        self.checkpoint = "fake-vae-1"
        self.tail_latents = tail_latents
        self.frames_per_latent = frames_per_latent
        self.replica = Replica()
        self.encoders = count()
        self.quality: list[int] = []
        self.bitrates: list[int] = []
        self.key_frames = 0  # asked for
        self.traces: list[str] = []

    async def Describe(
        self, request: vae_pb2.VaeServiceDescribeRequest, context: Any
    ) -> vae_pb2.VaeServiceDescribeResponse:
        return vae_pb2.VaeServiceDescribeResponse(
            checkpoint=self.checkpoint,
            latent_channels=4,
            spatial_stride=8,
            frames_per_latent=self.frames_per_latent,
            tail_latents=self.tail_latents,
            capacity=self.replica.capacity,
            replica=self.replica.name,
        )

    async def Encode(self, request: vae_pb2.EncodeRequest, context: Any) -> vae_pb2.EncodeResponse:
        picture = RawPicture.from_proto(request.image, at="image")
        anchor = Tensor.from_array(self.anchor_of(picture).astype(np.float32))
        return vae_pb2.EncodeResponse(anchor=anchor.to_proto(), checkpoint=self.checkpoint)

    def _digest(self, picture: RawPicture) -> NDArray[Any]:
        digest = hashlib.sha256(self.checkpoint.encode() + picture.pixels).digest()
        return np.frombuffer(digest, np.uint8)[:16].reshape(4, 1, 2, 2)

    async def Decode(
        self, request_iterator: AsyncIterator[vae_pb2.DecodeRequest], context: Any
    ) -> AsyncIterator[vae_pb2.DecodeResponse]:
        self.replica.called_with(context)
        async with self.replica.attachment(request_iterator) as attachment:
            session: _Session | None = None
            async for event in attachment.events():
                if not isinstance(event, vae_pb2.DecodeRequest):
                    yield vae_pb2.DecodeResponse(hand_over=event)
                    continue
                match event.WhichOneof("message"):
                    case "attach" if session is None:
                        session = _Session(self, event.attach)
                        attached = vae_pb2.DecodeAttached(
                            checkpoint=self.checkpoint,
                            tail_latents=self.tail_latents,
                            max_age=duration.to_proto(self.replica.max_age or 0),
                            replica=self.replica.name,
                            capacity=self.replica.capacity,
                            video=event.attach.video,
                        )
                        yield vae_pb2.DecodeResponse(attached=attached)
                    case "chunk" if session is not None:
                        self.traces.append(event.chunk.traceparent)
                        await attachment.work()
                        for frame in session.decode(event.chunk):
                            yield vae_pb2.DecodeResponse(frame=frame.to_proto())
                    case "rewind" if session is not None:
                        session.take(LogTail.from_proto(event.rewind.tail, at="rewind.tail"))
                    case "key_frame" if session is not None:
                        session.key_wanted = True
                        self.key_frames += 1
                    case "settings" if session is not None:
                        self.quality.append(event.settings.quality)
                        self.bitrates.append(event.settings.bitrate)
                    case other:
                        raise BadInput("message", got=other, expected="attach once, then chunks")


class _Session:
    def __init__(self, vae: FakeVae, attach: vae_pb2.DecodeAttach) -> None:
        self.vae = vae
        self.spec = spec_from_proto(attach.spec, at="attach.spec")
        self.form = VideoFormat.from_proto(attach.video, at="attach.video").form
        self.anchor = Tensor.from_proto(attach.anchor, at="attach.anchor").payload
        self.encoder = next(vae.encoders)
        wanted = VideoFormat.from_proto(attach.video, at="attach.video")
        self.film = None if vae.film is None else vae.film(wanted, self.spec, self.anchor)
        self.encoded = 0
        tail = LogTail(0)
        if attach.HasField("tail"):
            tail = LogTail.from_proto(attach.tail, at="attach.tail")
        self.take(tail)

    def take(self, tail: LogTail) -> None:
        known = sum(part.tensor.shape[1] for part in tail.latents)
        needed = min(tail.next_chunk * self.spec.latents_per_chunk, self.vae.tail_latents)
        if known < needed:
            raise BadInput("tail.latents", got=known, expected=f">= {needed} latent frames")
        self.next_chunk = tail.next_chunk
        self.history = [frame for part in tail.latents for frame in _frames(part)]
        if known == tail.next_chunk * self.spec.latents_per_chunk:
            self.history.insert(0, self.anchor)
        self.history = self.history[-self.vae.tail_latents :]
        self.key_wanted = self.fresh = True

    def decode(self, message: vae_pb2.DecodeChunk) -> list[VideoFrame]:
        latents = Latents.from_proto(message.latents, at="chunk.latents")
        if latents.chunk != self.next_chunk:
            raise BadInput("chunk", got=latents.chunk, expected=str(self.next_chunk))
        if message.skip_frames and not self.fresh:
            raise BadInput("chunk.skip_frames", got=message.skip_frames, expected="0")
        self.next_chunk += 1
        self.fresh = False
        frames: list[VideoFrame] = []
        first = self.spec.first_frame(latents.chunk)
        seed, chunk = (int(value) for value in latents.tensor.array()[0, 0, 0, :2])
        for latent in _frames(latents):
            self.history = [*self.history, latent][-self.vae.tail_latents :]
            digest = hashlib.sha256(b"".join(self.history)).digest()
            for index in range(self.spec.frames_per_latent):
                number = first + len(frames)
                body = _MARK.pack(seed, chunk, number)
                wanted = number - first >= message.skip_frames
                picture = self._picture(body, digest + bytes([index]), wanted=wanted)
                frames.append(VideoFrame(latents.turn, latents.chunk, number, picture))
        return frames[message.skip_frames :]

    def _picture(self, body: bytes, digest: bytes, *, wanted: bool) -> RawPicture | EncodedPicture:
        if isinstance(self.form, PixelFormat):
            width, height = self.spec.width, self.spec.height
            size = self.form.size(width, height)
            pixels = (body + digest * (size // len(digest) + 1))[:size]
            return RawPicture(self.form, width, height, pixels)
        if not wanted:
            return EncodedPicture(self.form, key_frame=False, payload=b"skipped")
        key = self.key_wanted or self.form is Codec.JPEG
        self.key_wanted = False
        if self.film is not None:
            return self.film.frame(_MARK.unpack_from(body)[2], key=key)
        link = _LINK.pack(self.encoder, self.encoded, key)
        self.encoded += 1
        return EncodedPicture(self.form, key_frame=key, payload=body + link + digest)


def _frames(latents: Latents) -> list[bytes]:
    """The latent frames of a chunk, as bytes."""
    array = latents.tensor.array()
    return [array[:, index].tobytes() for index in range(array.shape[1])]
