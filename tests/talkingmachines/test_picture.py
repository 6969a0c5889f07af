"""Pictures survive the wire unchanged and refuse what cannot be a picture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkingmachines.errors import BadInput
from talkingmachines.picture import (
    Codec,
    EncodedPicture,
    PixelFormat,
    RawPicture,
    Region,
    VideoFormat,
    VideoFrame,
    VideoSettings,
)
from talkingmachines.v1 import media_pb2

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


@st.composite
def raw_pictures(draw: st.DrawFn) -> RawPicture:
    pixel_format = draw(st.sampled_from(PixelFormat))
    width, height = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    size = pixel_format.size(width, height)
    return RawPicture(pixel_format, width, height, draw(st.binary(min_size=size, max_size=size)))


encoded_pictures = st.builds(
    EncodedPicture,
    codec=st.sampled_from(Codec),
    key_frame=st.booleans(),
    payload=st.binary(min_size=1, max_size=8),
)
frames = st.builds(
    VideoFrame, turn=u32, chunk=u64, frame=u64, picture=raw_pictures() | encoded_pictures
)
formats = st.builds(VideoFormat, form=st.sampled_from(PixelFormat)) | st.builds(
    VideoFormat,
    form=st.sampled_from(Codec),
    settings=st.builds(
        VideoSettings,
        bitrate=st.just(0) | st.integers(50_000, 50_000_000),
        key_frame_interval=st.integers(0, 1_000),
        quality=st.integers(0, 100),
    ),
)
regions = st.builds(
    lambda x, y, w, h: Region(x, y, w * (1 - x), h * (1 - y)),
    *[st.floats(0, 0.875, width=32)] * 2,
    *[st.floats(0.125, 1, width=32)] * 2,
)


@given(frames)
def test_frame_round_trip(frame: VideoFrame) -> None:
    wire = media_pb2.VideoFrame.FromString(frame.to_proto().SerializeToString())
    assert VideoFrame.from_proto(wire, at="frame") == frame


@given(formats)
def test_format_round_trip(video: VideoFormat) -> None:
    wire = media_pb2.VideoFormat.FromString(video.to_proto().SerializeToString())
    assert VideoFormat.from_proto(wire, at="video") == video


@given(regions)
def test_region_round_trip(region: Region) -> None:
    wire = media_pb2.Region.FromString(region.to_proto().SerializeToString())
    again = Region.from_proto(wire, at="face")
    for name in ("x", "y", "width", "height"):
        assert getattr(again, name) == pytest.approx(getattr(region, name), abs=1e-6)


def test_pixels_are_asked_for_without_settings() -> None:
    assert not VideoFormat(PixelFormat.RGB24).to_proto().HasField("settings")


def test_content_is_not_shown() -> None:
    raw = RawPicture(PixelFormat.RGB24, 2, 1, b"hidden")
    encoded = EncodedPicture(Codec.H264, key_frame=True, payload=b"hidden")
    assert "hidden" not in f"{raw} {encoded!r}"


def test_a_frame_that_the_wire_cannot_carry_is_refused() -> None:
    picture = EncodedPicture(Codec.H264, key_frame=True, payload=b"x")
    with pytest.raises(BadInput, match="frame"):
        VideoFrame(turn=0, chunk=0, frame=-1, picture=picture)


def test_odd_sizes_round_chroma_up() -> None:
    assert PixelFormat.I420.size(3, 3) == 9 + 2 * 4
    assert PixelFormat.I420.size(512, 512) * 2 == 3 * 512 * 512


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (media_pb2.VideoFrame(), "frame.picture"),
        (media_pb2.VideoFrame(raw=media_pb2.RawPicture(width=2)), "frame.raw.pixel_format"),
        (
            media_pb2.VideoFrame(
                raw=media_pb2.RawPicture(
                    pixel_format=media_pb2.PIXEL_FORMAT_RGB24, width=2, height=1, pixels=b"12345"
                )
            ),
            "frame.raw.pixels",
        ),
        (
            media_pb2.VideoFrame(encoded=media_pb2.EncodedPicture(codec=media_pb2.CODEC_VP8)),
            "frame.encoded.payload",
        ),
    ],
)
def test_bad_frames_are_named(message: media_pb2.VideoFrame, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        VideoFrame.from_proto(message, at="frame")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (media_pb2.VideoFormat(), "open.video.form"),
        (media_pb2.VideoFormat(codec=media_pb2.CODEC_UNSPECIFIED), "open.video.codec"),
        (
            media_pb2.VideoFormat(
                codec=media_pb2.CODEC_H264, settings=media_pb2.VideoSettings(bitrate=12)
            ),
            "open.video.settings.bitrate",
        ),
        (
            media_pb2.VideoFormat(
                pixels=media_pb2.PIXEL_FORMAT_RGB24, settings=media_pb2.VideoSettings(quality=80)
            ),
            "open.video.settings",
        ),
    ],
)
def test_bad_formats_are_named(message: media_pb2.VideoFormat, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        VideoFormat.from_proto(message, at="open.video")
    assert caught.value.field == field


@pytest.mark.parametrize(
    "numbers", [(-0.1, 0, 0.5, 0.5), (0, 0, 0, 1), (0.6, 0, 0.5, 1), (float("nan"), 0, 1, 1)]
)
def test_regions_lie_inside_the_picture(numbers: tuple[float, float, float, float]) -> None:
    with pytest.raises(BadInput, match="inside the picture"):
        Region(*numbers)
