"""Encode a session's frames once, at the source, for however many viewers.

On the path: engine → **codec** → gateway. PyAV does the work; H.264 goes to the hardware encoder
when there is one. Every stream is made for calls: no frame waits for a later one, there are no B
frames, and key frames come when asked for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import av
import av.error
import numpy as np
import torch
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from torch import Tensor

from services.vae.pixels import Pixels
from talkingmachines.errors import BadInput, EngineFailure

_SMALLEST, _LARGEST = 16, 8192  # pixels; what all the encoders open with
_FASTEST = 240  # frames per second


class Codec(Enum):
    JPEG = "jpeg"  # every frame by itself, full range
    H264 = "h264"  # Annex B, parameter sets before every key frame
    VP8 = "vp8"

    @property
    def pixels(self) -> Pixels:
        """What the engine should hand out for this codec."""
        return Pixels.I420_FULL if self is Codec.JPEG else Pixels.I420


@dataclass(frozen=True, slots=True)
class Tuning:
    """What may change about an encoder while it runs.

    Raises:
        BadInput: out of range; names the field.
    """

    bits_per_second: int = 1_500_000  # no meaning to JPEG; 50,000 to 50,000,000
    key_interval: int = 250  # frames after which a key frame comes unasked; 1 to 1,000
    quality: int = 85  # of JPEG alone; 1 to 100

    def __post_init__(self) -> None:
        _within("video.settings.bitrate", self.bits_per_second, 50_000, 50_000_000)
        _within("video.settings.key_frame_interval", self.key_interval, 1, 1_000)
        _within("video.settings.quality", self.quality, 1, 100)


@dataclass(frozen=True, slots=True)
class Encoded:
    frame: int  # on the media clock: its time is frame / fps
    key: bool  # can be decoded without anything before it
    payload: bytes


class FrameEncoder:
    """One encoded stream. Any thread may call it, one at a time; needs no device.

    Raises:
        BadInput: a picture or a rate that the codec cannot carry.
    """

    def __init__(
        self, codec: Codec, tuning: Tuning | None = None, *, width: int, height: int, fps: int
    ) -> None:
        for field, side in (("spec.width", width), ("spec.height", height)):
            if side % 2 or not _SMALLEST <= side <= _LARGEST:
                expected = f"an even number of pixels, {_SMALLEST} to {_LARGEST}, to encode"
                raise BadInput(field, got=side, expected=expected)
        _within("spec.fps", fps, 1, _FASTEST)
        self._codec = codec
        self._size = (width, height)
        self._fps = fps
        self._tuning = tuning or Tuning()
        self._context = self._opened()
        self._next_frame = 0
        self._encoded = 0
        self._key_wanted = True

    def encode(self, frames: Tensor, first_frame: int) -> list[Encoded]:
        """Encode uint8 frames [F, 3H/2, W] of `Codec.pixels`, one packet each.

        `first_frame` is the media-clock number of the first. Where it does not follow the last one,
        pictures were dropped that later ones may refer to, so a key frame comes.

        Raises:
            BadInput: frames of another size or kind.
            EngineFailure: the encoder gave up.
        """
        width, height = self._size
        if frames.dtype != torch.uint8 or frames.shape[1:] != (height * 3 // 2, width):
            got = f"{list(frames.shape)} {frames.dtype}"
            raise BadInput("frames", got=got, expected=f"uint8 [F, {height * 3 // 2}, {width}]")
        if first_frame != self._next_frame:
            self._key_wanted = True
        self._next_frame = first_frame + len(frames)
        planes = frames.numpy()
        return [self._one(planes[at], first_frame + at) for at in range(len(planes))]

    def request_key_frame(self) -> None:
        """The next frame will be a key frame."""
        self._key_wanted = True

    @property
    def tuning(self) -> Tuning:
        return self._tuning

    def tune(self, tuning: Tuning) -> None:
        """Go by another tuning from the next frame on. Costs a key frame when anything changes: no
        encoder here changes its rate in the middle of a stream.
        """
        if tuning != self._tuning:
            self._tuning = tuning
            self._context = self._opened()
            self._key_wanted = True

    def _one(self, planes: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], number: int) -> Encoded:
        picture = av.VideoFrame.from_ndarray(planes, format=_pixel_format(self._codec))
        # The encoder's own count, because media time goes back after an interruption.
        picture.pts = self._encoded
        self._encoded += 1
        picture.pict_type = PictureType.I if self._key_wanted else PictureType.NONE
        self._key_wanted = True  # until this one is out: what follows a failure must stand alone
        try:
            packets = self._context.encode(picture)
        except av.error.FFmpegError as error:
            raise EngineFailure(f"encoding {self._codec.value} failed: {error}") from error
        if len(packets) != 1:
            got = f"{len(packets)} packets for one frame"
            raise EngineFailure(f"encoding {self._codec.value} failed: {got}")
        self._key_wanted = False
        return Encoded(number, packets[0].is_keyframe, bytes(packets[0]))

    def _opened(self) -> VideoCodecContext:
        name = encoder_name(self._codec)
        try:
            return _open(name, self._codec, self._size, self._fps, self._tuning)
        except (av.error.FFmpegError, ValueError) as error:
            raise EngineFailure(f"{name} does not open: {error}") from error


@functools.cache
def encoder_name(codec: Codec) -> str:
    """FFmpeg's name of the encoder for `codec` on this machine: hardware where it really opens."""
    match codec:
        case Codec.JPEG:
            return "mjpeg"
        case Codec.VP8:
            return "libvpx"
        case Codec.H264:
            return "h264_nvenc" if _opens("h264_nvenc") else "libx264"


def _opens(name: str) -> bool:
    """Whether the encoder takes a frame here; that the library knows its name says nothing."""
    try:
        context = _open(name, Codec.H264, (256, 256), 25, Tuning())
        context.encode(av.VideoFrame(256, 256, "yuv420p"))
    except (av.error.FFmpegError, ValueError):
        return False
    return True


# A key frame where the picture changes much would cost many bits when they are scarcest, and a call
# has no cuts. Every browser decodes the baseline profile, and offers it.
_OPTIONS = {
    "libx264": {
        "preset": "veryfast",
        "tune": "zerolatency",
        "profile": "baseline",
        "sc_threshold": "0",
    },
    # Not yet run on hardware.
    "h264_nvenc": {
        "preset": "p4",
        "profile": "baseline",
        "tune": "ull",
        "rc": "cbr",
        "delay": "0",
        "forced-idr": "1",
        "no-scenecut": "1",
    },
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"},
    "mjpeg": {},
}


def _open(
    name: str, codec: Codec, size: tuple[int, int], fps: int, tuning: Tuning
) -> VideoCodecContext:
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height = size
    context.pix_fmt = _pixel_format(codec)
    context.time_base = Fraction(1, fps)
    context.framerate = Fraction(fps, 1)
    context.bit_rate = tuning.bits_per_second
    context.gop_size = tuning.key_interval
    context.max_b_frames = 0
    if name != "h264_nvenc":
        # Frame threads would hold frames back, and slices would make every machine's stream
        # another one. Calls are small pictures: a session has a core's few percent to spare.
        context.thread_count = 1
    context.colorspace = Colorspace.SMPTE170M
    context.color_primaries = ColorPrimaries.SMPTE170M
    context.color_trc = ColorTrc.SMPTE170M
    context.color_range = ColorRange.JPEG if codec is Codec.JPEG else ColorRange.MPEG
    if codec is Codec.JPEG:  # one quantiser for every frame; a rate means nothing here
        context.qmin = context.qmax = _quantiser(tuning.quality)
    context.options = _OPTIONS[name]
    context.open()
    return context


def _pixel_format(codec: Codec) -> str:
    return "yuvj420p" if codec is Codec.JPEG else "yuv420p"


def _quantiser(quality: int) -> int:
    """FFmpeg's scale of JPEG, 2 (best) to 31, for a quality of 100 to 1."""
    return round(2 + (100 - quality) * 29 / 99)


def _within(field: str, got: int, least: int, most: int) -> None:
    if not least <= got <= most:
        raise BadInput(field, got=got, expected=f"{least} to {most}")
