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

_KEY_INTERVAL = 10  # seconds after which a key frame comes unasked, for viewers that never ask
_SLOWEST = 1_000  # bits per second; encoders refuse to open below


class Codec(Enum):
    JPEG = "jpeg"  # every frame by itself, full range
    H264 = "h264"  # Annex B, parameter sets before every key frame
    VP8 = "vp8"

    @property
    def pixels(self) -> Pixels:
        """What the engine should hand out for this codec."""
        return Pixels.I420_FULL if self is Codec.JPEG else Pixels.I420


@dataclass(frozen=True, slots=True)
class Encoded:
    frame: int  # on the media clock: its time is frame / fps
    key: bool  # can be decoded without anything before it
    payload: bytes


class FrameEncoder:
    """One encoded stream. Not thread-safe; needs no device.

    Raises:
        BadInput: a bitrate below 1,000, or a picture that the codec cannot carry.
    """

    def __init__(
        self, codec: Codec, *, width: int, height: int, fps: int, bits_per_second: int
    ) -> None:
        if width % 2 or height % 2:
            raise BadInput("video.size", got=f"{width}x{height}", expected="even sides")
        self._codec = codec
        self._size = (width, height)
        self._fps = fps
        self._bits_per_second = _checked(bits_per_second)
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

    def set_bitrate(self, bits_per_second: int) -> None:
        """Aim at another rate from the next frame on. Costs a key frame: no encoder here changes
        its rate in the middle of a stream.

        Raises:
            BadInput: a bitrate below 1,000.
        """
        self._bits_per_second = _checked(bits_per_second)
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
        return _open(name, self._codec, self._size, self._fps, self._bits_per_second)


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
        context = _open(name, Codec.H264, (256, 256), 25, 1_000_000)
        context.encode(av.VideoFrame(256, 256, "yuv420p"))
    except (av.error.FFmpegError, ValueError):
        return False
    return True


_OPTIONS = {
    "libx264": {"preset": "veryfast", "tune": "zerolatency"},
    # Not yet run on hardware.
    "h264_nvenc": {"preset": "p4", "tune": "ull", "rc": "cbr", "delay": "0", "forced-idr": "1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"},
    "mjpeg": {},
}


def _open(
    name: str, codec: Codec, size: tuple[int, int], fps: int, bits_per_second: int
) -> VideoCodecContext:
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height = size
    context.pix_fmt = _pixel_format(codec)
    context.time_base = Fraction(1, fps)
    context.framerate = Fraction(fps, 1)
    context.bit_rate = bits_per_second
    context.gop_size = _KEY_INTERVAL * fps
    context.max_b_frames = 0
    if name in ("libvpx", "mjpeg"):
        context.thread_count = 1  # frame threads would hold frames back
    context.colorspace = Colorspace.SMPTE170M
    context.color_primaries = ColorPrimaries.SMPTE170M
    context.color_trc = ColorTrc.SMPTE170M
    context.color_range = ColorRange.JPEG if codec is Codec.JPEG else ColorRange.MPEG
    context.options = _OPTIONS[name]
    context.open()
    return context


def _pixel_format(codec: Codec) -> str:
    return "yuvj420p" if codec is Codec.JPEG else "yuv420p"


def _checked(bits_per_second: int) -> int:
    if bits_per_second < _SLOWEST:
        raise BadInput("video.bits_per_second", got=bits_per_second, expected=f">= {_SLOWEST}")
    return bits_per_second
