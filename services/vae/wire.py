"""Between the contract on the wire and the engine's own.

Beside the servicer. Whatever does not fit is refused here or by the engine, under the name that its
sender knows.

Legend: Z latent channels, K latents, h and w rows and columns of a latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from google.protobuf.duration_pb2 import Duration
from torch import Tensor

from services.vae import codecs
from services.vae.codecs import FrameEncoder, Tuning
from services.vae.config import VaeConfig
from services.vae.pixels import Pixels
from talkingmachines import duration, media
from talkingmachines.errors import BadInput
from talkingmachines.fields import FieldPath
from talkingmachines.media import Latents, LogTail, spec_from_proto
from talkingmachines.picture import Codec, PixelFormat, RawPicture, VideoFormat, VideoSettings
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import media_pb2, vae_pb2

_LONGEST_SLACK = 3600.0  # seconds, either way
_LONGEST_SIDE = 16_384  # pixels; of a picture whose price is asked for

_PIXELS = {PixelFormat.RGB24: Pixels.RGB24, PixelFormat.I420: Pixels.I420}
_CODECS = {
    Codec.JPEG: codecs.Codec.JPEG,
    Codec.H264: codecs.Codec.H264,
    Codec.VP8: codecs.Codec.VP8,
}


@dataclass(frozen=True, slots=True, eq=False)
class Attach:
    """A session to take in."""

    session_id: str  # for logs
    spec: StreamSpec
    anchor: Tensor  # [Z, 1, h, w]
    video: VideoFormat  # as asked for
    tail: Tail


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """Where a session goes on, and what it decoded before."""

    next_chunk: int
    latents: Tensor  # [Z, K, h, w]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A chunk to decode."""

    turn: int
    number: int
    latents: Tensor  # [Z, K, h, w]
    slack: float  # seconds from now until its frames are due
    skip_frames: int
    trace: str


class Reader:
    """Reads what the gateway sends to one VAE.

    Args:
        reach: latents of tail that an exact rebuild takes.
    """

    def __init__(self, config: VaeConfig, *, reach: int) -> None:
        self._config, self._reach = config, reach

    def attach(self, message: vae_pb2.DecodeAttach) -> Attach:
        """Raises BadInput, naming the field."""
        spec = spec_from_proto(message.spec, at="attach.spec")
        with FieldPath("attach"):
            self._check_spec(spec)
        anchor = media.Tensor.from_proto(message.anchor, at="attach.anchor")
        sent = message.tail if message.HasField("tail") else media_pb2.LogTail()
        return Attach(
            session_id=message.session_id,
            spec=spec,
            anchor=_tensor(anchor),
            video=VideoFormat.from_proto(message.video, at="attach.video"),
            tail=self.tail(sent, spec, at="attach.tail"),
        )

    def tail(self, message: media_pb2.LogTail, spec: StreamSpec, *, at: str) -> Tail:
        """Raises BadInput, naming the field."""
        sent = LogTail.from_proto(message, at=at)
        pieces = [_tensor(past.tensor) for past in sent.latents]
        per_chunk = spec.latents_per_chunk
        if pieces and pieces[0].shape[1] != per_chunk:
            got = f"{pieces[0].shape[1]} latent frames"
            raise BadInput(f"{at}.chunks.latents", got=got, expected=f"{per_chunk}, a chunk")
        needed = min(sent.next_chunk, -(-self._reach // per_chunk))
        if len(pieces) < needed:
            expected = f"at least {needed}"
            raise BadInput(f"{at}.chunks.latents", got=f"{len(pieces)} chunks", expected=expected)
        height, width = self._config.latent_size(spec.height, spec.width)
        nothing = torch.empty(self._config.latent_channels, 0, height, width)
        return Tail(sent.next_chunk, torch.cat(pieces, dim=1) if pieces else nothing)

    def chunk(self, message: vae_pb2.DecodeChunk) -> Asked:
        """Raises BadInput, naming the field."""
        latents = Latents.from_proto(message.latents, at="chunk.latents")
        return Asked(
            turn=latents.turn,
            number=latents.chunk,
            latents=_tensor(latents.tensor),
            slack=_slack(message.slack, at="chunk.slack"),
            skip_frames=message.skip_frames,
            trace=message.traceparent,
        )

    def picture(self, message: media_pb2.RawPicture) -> Tensor:
        """uint8 RGB [1, H, W, 3]. Raises BadInput, naming the field."""
        picture = RawPicture.from_proto(message, at="image")
        if picture.pixel_format is not PixelFormat.RGB24:
            got = picture.pixel_format.name
            raise BadInput("image.pixel_format", got=got, expected=PixelFormat.RGB24.name)
        with FieldPath("image"):
            self.check_size(picture.height, picture.width)
        pixels = torch.frombuffer(bytearray(picture.pixels), dtype=torch.uint8)
        return pixels.view(1, picture.height, picture.width, 3)

    def check_size(self, height: int, width: int) -> None:
        """Raises BadInput when this VAE makes no pictures of that size."""
        stride = self._config.spatial_stride
        for field, side in (("height", height), ("width", width)):
            if side % stride or not 0 < side <= _LONGEST_SIDE:
                expected = f"a multiple of {stride}, {_LONGEST_SIDE} at most"
                raise BadInput(field, got=side, expected=expected)

    def _check_spec(self, spec: StreamSpec) -> None:
        with FieldPath("spec"):
            self.check_size(spec.height, spec.width)
            if spec.frames_per_latent != self._config.frames_per_latent:
                expected = str(self._config.frames_per_latent)
                raise BadInput("frames_per_latent", got=spec.frames_per_latent, expected=expected)


def pixels_for(video: VideoFormat, spec: StreamSpec) -> Pixels:
    """How the engine hands out frames that are wanted as `video`.

    Raises:
        BadInput: chroma needs even sides.
    """
    match video.form:
        case Codec():
            return _CODECS[video.form].pixels
        case PixelFormat():
            if video.form is PixelFormat.I420 and (spec.width % 2 or spec.height % 2):
                size = f"{spec.width}x{spec.height}"
                raise BadInput("attach.video.pixels", got=f"I420 of {size}", expected="even sides")
            return _PIXELS[video.form]


def encoder_for(video: VideoFormat, spec: StreamSpec) -> FrameEncoder | None:
    """None for pixels.

    Raises:
        BadInput: a picture that the codec cannot carry.
    """
    if not isinstance(video.form, Codec):
        return None
    with FieldPath("attach"):
        return FrameEncoder(
            _CODECS[video.form],
            tuning(video.settings),
            width=spec.width,
            height=spec.height,
            fps=spec.fps,
        )


def tuning(settings: VideoSettings) -> Tuning:
    """Settings without zeros, as the encoder takes them."""
    return Tuning(settings.bitrate, settings.key_frame_interval, settings.quality)


def tensor_to_proto(values: Tensor) -> media_pb2.Tensor:
    return media.Tensor.from_array(values.numpy()).to_proto()


def _tensor(sent: media.Tensor) -> Tensor:
    return torch.from_numpy(sent.array().copy())


def _slack(message: Duration, *, at: str) -> float:
    seconds = duration.from_proto(message)
    if not math.isfinite(seconds) or abs(seconds) > _LONGEST_SLACK:
        raise BadInput(at, got=f"{seconds:g} s", expected=f"within {_LONGEST_SLACK:g} s of now")
    return seconds
