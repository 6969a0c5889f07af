"""Pictures and video frames, as values.

They check themselves when they are made; `from_proto` and `to_proto` are the only places where
they meet protobuf, and `at` is the path of the message within the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from talkingmachines.errors import BadInput
from talkingmachines.fields import FieldPath, member, unsigned
from talkingmachines.v1 import media_pb2


class PixelFormat(Enum):
    """Layout of a picture without compression."""

    RGB24 = media_pb2.PIXEL_FORMAT_RGB24
    I420 = media_pb2.PIXEL_FORMAT_I420

    def size(self, width: int, height: int) -> int:
        """Bytes of a picture; I420 rounds its chroma planes up."""
        if self is PixelFormat.RGB24:
            return 3 * width * height
        return width * height + 2 * ((width + 1) // 2) * ((height + 1) // 2)


class Codec(Enum):
    """How a frame is encoded."""

    JPEG = media_pb2.CODEC_JPEG
    H264 = media_pb2.CODEC_H264
    VP8 = media_pb2.CODEC_VP8


@dataclass(frozen=True, slots=True)
class RawPicture:
    """A picture without compression: rows from top to bottom, no padding."""

    pixel_format: PixelFormat
    width: int  # pixels
    height: int
    pixels: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise BadInput("width and height", got=(self.width, self.height), expected=">= 1")
        expected = self.pixel_format.size(self.width, self.height)
        if len(self.pixels) != expected:
            raise BadInput(
                "pixels",
                got=f"{len(self.pixels)} bytes",
                expected=f"{expected} bytes for {self.width}x{self.height} "
                f"{self.pixel_format.name}",
            )

    @classmethod
    def from_proto(cls, message: media_pb2.RawPicture, *, at: str) -> RawPicture:
        with FieldPath(at):
            return cls(
                pixel_format=member(PixelFormat, message.pixel_format, at="pixel_format"),
                width=message.width,
                height=message.height,
                pixels=message.pixels,
            )

    def to_proto(self) -> media_pb2.RawPicture:
        message = media_pb2.RawPicture()
        self.put_into(message)
        return message

    def put_into(self, message: media_pb2.RawPicture) -> None:
        """Fill an empty message."""
        message.pixel_format, message.pixels = self.pixel_format.value, self.pixels
        message.width, message.height = self.width, self.height


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """One frame of a video stream."""

    codec: Codec
    key_frame: bool  # whether decoding can begin here
    payload: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not self.payload:
            raise BadInput("payload", got="nothing", expected=f"one {self.codec.name} frame")

    @classmethod
    def from_proto(cls, message: media_pb2.EncodedPicture, *, at: str) -> EncodedPicture:
        with FieldPath(at):
            return cls(
                codec=member(Codec, message.codec, at="codec"),
                key_frame=message.key_frame,
                payload=message.payload,
            )

    def to_proto(self) -> media_pb2.EncodedPicture:
        message = media_pb2.EncodedPicture()
        self.put_into(message)
        return message

    def put_into(self, message: media_pb2.EncodedPicture) -> None:
        """Fill an empty message."""
        message.codec, message.key_frame = self.codec.value, self.key_frame
        message.payload = self.payload


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One frame at its place on the session's media clock."""

    turn: int
    chunk: int
    frame: int
    picture: RawPicture | EncodedPicture

    def __post_init__(self) -> None:
        unsigned("turn", self.turn, bits=32)
        unsigned("chunk", self.chunk, bits=64)
        unsigned("frame", self.frame, bits=64)

    @classmethod
    def from_proto(cls, message: media_pb2.VideoFrame, *, at: str) -> VideoFrame:
        with FieldPath(at):
            picture: RawPicture | EncodedPicture
            match message.WhichOneof("picture"):
                case "raw":
                    picture = RawPicture.from_proto(message.raw, at="raw")
                case "encoded":
                    picture = EncodedPicture.from_proto(message.encoded, at="encoded")
                case None:
                    raise BadInput("picture", got="nothing", expected="raw or encoded")
            return cls(turn=message.turn, chunk=message.chunk, frame=message.frame, picture=picture)

    def to_proto(self) -> media_pb2.VideoFrame:
        message = media_pb2.VideoFrame()
        self.put_into(message)
        return message

    def put_into(self, message: media_pb2.VideoFrame) -> None:
        """Fill an empty message: of one that is made apart and then joined, all is copied."""
        message.turn, message.chunk, message.frame = self.turn, self.chunk, self.frame
        match self.picture:
            case RawPicture():
                self.picture.put_into(message.raw)
            case EncodedPicture():
                self.picture.put_into(message.encoded)


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """What may change about an encoder while it runs; 0 leaves a value as it is."""

    bitrate: int = 0  # bits per second
    key_frame_interval: int = 0  # frames
    quality: int = 0  # JPEG, 1 to 100

    def __post_init__(self) -> None:
        _bounded("bitrate", self.bitrate, least=50_000, most=50_000_000)
        _bounded("key_frame_interval", self.key_frame_interval, least=1, most=1_000)
        _bounded("quality", self.quality, least=1, most=100)

    def over(self, former: VideoSettings) -> VideoSettings:
        """These settings, and the former ones where these leave a value as it was."""
        return VideoSettings(
            bitrate=self.bitrate or former.bitrate,
            key_frame_interval=self.key_frame_interval or former.key_frame_interval,
            quality=self.quality or former.quality,
        )

    @classmethod
    def from_proto(cls, message: media_pb2.VideoSettings, *, at: str) -> VideoSettings:
        with FieldPath(at):
            return cls(
                bitrate=message.bitrate,
                key_frame_interval=message.key_frame_interval,
                quality=message.quality,
            )

    def to_proto(self) -> media_pb2.VideoSettings:
        return media_pb2.VideoSettings(
            bitrate=self.bitrate,
            key_frame_interval=self.key_frame_interval,
            quality=self.quality,
        )


@dataclass(frozen=True, slots=True)
class VideoFormat:
    """How frames are wanted: pixels as they are, or encoded once.

    The settings are an encoder's: pixels have none.
    """

    form: PixelFormat | Codec
    settings: VideoSettings = field(default_factory=VideoSettings)

    def __post_init__(self) -> None:
        if isinstance(self.form, PixelFormat) and self.settings != VideoSettings():
            raise BadInput("settings", got="some", expected="none beside pixels")

    @classmethod
    def from_proto(cls, message: media_pb2.VideoFormat, *, at: str) -> VideoFormat:
        with FieldPath(at):
            settings = VideoSettings.from_proto(message.settings, at="settings")
            match message.WhichOneof("form"):
                case "pixels":
                    return cls(member(PixelFormat, message.pixels, at="pixels"), settings)
                case "codec":
                    return cls(member(Codec, message.codec, at="codec"), settings)
                case None:
                    raise BadInput("form", got="nothing", expected="pixels or codec")

    def to_proto(self) -> media_pb2.VideoFormat:
        match self.form:
            case PixelFormat():
                return media_pb2.VideoFormat(pixels=self.form.value)
            case Codec():
                settings = self.settings.to_proto()
                return media_pb2.VideoFormat(codec=self.form.value, settings=settings)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in fractions of the picture's width and height."""

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        slack = 1e-6  # the wire carries 32-bit floats
        inside = (
            self.x >= 0
            and self.y >= 0
            and self.width > 0
            and self.height > 0
            and self.x + self.width <= 1 + slack
            and self.y + self.height <= 1 + slack
        )
        if not inside:  # also when anything is not a number
            raise BadInput(
                "region",
                got=f"x={self.x} y={self.y} width={self.width} height={self.height}",
                expected="a rectangle inside the picture, in fractions of its size",
            )

    @classmethod
    def from_proto(cls, message: media_pb2.Region, *, at: str) -> Region:
        with FieldPath(at):
            return cls(x=message.x, y=message.y, width=message.width, height=message.height)

    def to_proto(self) -> media_pb2.Region:
        return media_pb2.Region(x=self.x, y=self.y, width=self.width, height=self.height)


def _bounded(field: str, value: int, *, least: int, most: int) -> None:
    if value and not least <= value <= most:
        raise BadInput(field, got=value, expected=f"0 or {least} to {most}")
