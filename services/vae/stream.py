"""One attached session between wire and engine: what is next, what is owed, how frames leave.

Beside the servicer, which has one for each attachment. Requests and results come here in one order,
one at a time; packing and encoding frames happens on a thread, away from the event loop and from
the device.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from torch import Tensor

from services.vae.codecs import FrameEncoder
from services.vae.driver import Session
from services.vae.session import Chunk, Decoded, Ready
from services.vae.tally import Tally, Times
from services.vae.wire import Asked, Attach, Reader, tuning
from talkingmachines.errors import BadInput
from talkingmachines.picture import (
    Codec,
    EncodedPicture,
    PixelFormat,
    RawPicture,
    VideoFormat,
    VideoFrame,
    VideoSettings,
)
from talkingmachines.v1 import media_pb2, vae_pb2


@dataclass(frozen=True, slots=True)
class _Owed:
    """A chunk whose frames are still to come."""

    turn: int
    skip_frames: int
    trace: str
    since: float  # monotonic


class Stream:
    """Args: video: how frames leave, nothing left open."""

    def __init__(
        self,
        session: Session,
        attach: Attach,
        video: VideoFormat,
        encoder: FrameEncoder | None,
        *,
        reader: Reader,
        tally: Tally,
    ) -> None:
        self.video = video
        self._session, self._spec, self._encoder = session, attach.spec, encoder
        self._reader, self._tally = reader, tally
        self._settings = video.settings
        self._next = attach.tail.next_chunk
        self._turn = 0
        self._rewinds = 0
        self._fresh = True  # nothing decoded since attaching or rewinding
        self._stands = False
        self._since = monotonic()
        self._owed: deque[_Owed] = deque()

    def owing(self) -> bool:
        """Whether the caller waits for something."""
        return not self._stands or bool(self._owed)

    def began(self, ready: Ready) -> bool:
        """A state is built; whether it is the first, which makes the attachment stand."""
        if ready.rewinds == self._rewinds:
            self._tally.rebuilt(monotonic() - self._since)
        first, self._stands = not self._stands, True
        return first

    async def take(self, request: vae_pb2.DecodeRequest) -> None:
        """Raises BadInput, naming the field."""
        match request.WhichOneof("message"):
            case "chunk":
                await self._chunk(self._reader.chunk(request.chunk))
            case "rewind":
                await self._rewind(request.rewind)
            case "settings":
                await self._tune(request.settings)
            case "key_frame":
                if self._encoder is not None:  # without one, every frame stands alone
                    self._encoder.request_key_frame()
            case other:
                expected = "chunk, rewind, settings or key_frame"
                raise BadInput("message", got=other or "nothing", expected=expected)

    async def frames(self, decoded: Decoded) -> list[media_pb2.VideoFrame]:
        """What the caller is sent for a decoded latent; nothing if a rewind has voided it."""
        if decoded.rewinds != self._rewinds:
            return []
        owed, now = self._owed[0], monotonic()
        if decoded.last:
            self._owed.popleft()
        frames = await asyncio.to_thread(self._packed, decoded, owed)
        if decoded.last:
            times = Times(owed.since, decoded.done, now, monotonic(), decoded.seconds)
            self._tally.sent(owed.turn, decoded.chunk, owed.trace, times)
        return frames

    async def _chunk(self, asked: Asked) -> None:
        if asked.turn < self._turn:
            return  # of a turn that is over
        if asked.number != self._next:
            raise BadInput("chunk.latents.chunk", got=asked.number, expected=str(self._next))
        most = self._spec.frames_per_chunk - 1 if self._fresh else 0
        if asked.skip_frames > most:
            expected = f"at most {most}" if most else "0, but after attaching or a rewind"
            raise BadInput("chunk.skip_frames", got=asked.skip_frames, expected=expected)
        now = monotonic()
        self._session.submit(Chunk(asked.number, asked.latents, now + asked.slack))
        self._turn, self._next, self._fresh = asked.turn, asked.number + 1, False
        self._owed.append(_Owed(asked.turn, asked.skip_frames, asked.trace, now))

    async def _rewind(self, message: vae_pb2.DecodeRewind) -> None:
        if message.turn < self._turn:
            raise BadInput("rewind.turn", got=message.turn, expected=f"at least {self._turn}")
        tail = await asyncio.to_thread(
            self._reader.tail, message.tail, self._spec, at="rewind.tail"
        )
        self._since = monotonic()
        await self._session.rewind(tail.latents, next_chunk=tail.next_chunk, deadline=self._since)
        self._turn, self._next, self._fresh = message.turn, tail.next_chunk, True
        self._rewinds += 1
        self._owed.clear()
        if self._encoder is not None:
            self._encoder.request_key_frame()

    async def _tune(self, message: media_pb2.VideoSettings) -> None:
        wanted = VideoSettings.from_proto(message, at="settings")
        if self._encoder is None:
            raise BadInput("settings", got="some", expected="none beside pixels")
        self._settings = wanted.over(self._settings)
        await asyncio.to_thread(self._encoder.tune, tuning(self._settings))

    # ---- On a thread ----

    def _packed(self, decoded: Decoded, owed: _Owed) -> list[media_pb2.VideoFrame]:
        wanted = self._spec.first_frame(decoded.chunk) + owed.skip_frames
        first = max(decoded.first_frame, wanted)
        frames = decoded.frames[first - decoded.first_frame :]
        return [
            VideoFrame(owed.turn, decoded.chunk, first + at, picture).to_proto()
            for at, picture in enumerate(self._pictures(frames, first))
        ]

    def _pictures(self, frames: Tensor, first: int) -> Sequence[RawPicture | EncodedPicture]:
        """Args: first: number of the first frame on the media clock."""
        match self.video.form:
            case PixelFormat() as layout:
                width, height = self._spec.width, self._spec.height
                return [RawPicture(layout, width, height, one.numpy().tobytes()) for one in frames]
            case Codec() as codec:
                assert self._encoder is not None
                packets = self._encoder.encode(frames, first)
                return [EncodedPicture(codec, packet.key, packet.payload) for packet in packets]
