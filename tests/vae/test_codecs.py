"""What leaves an encoder decodes to the pictures that went in, when they went in."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from services.vae.admission import Limits
from services.vae.codecs import Codec, Encoded, FrameEncoder, Tuning, encoder_name
from services.vae.engine import Engine
from services.vae.pixels import Pixels, to_pixels
from services.vae.runner import place
from services.vae.session import Chunk, Decoded, Opening
from talkingmachines.errors import BadInput
from talkingmachines.spec import StreamSpec
from tests.vae.conftest import folded, random_vae

SIZE = 96
FPS = 25


def moving(count: int, first: int = 0) -> Tensor:
    """A smooth coloured picture that drifts: frames [3, F, H, W] in -1..1."""
    t = torch.arange(first, first + count).view(-1, 1, 1) / 8
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return torch.stack([torch.sin(x / 20 + t), torch.cos(y / 25 - t), torch.sin((x + y) / 30 + t)])


def encoder(codec: Codec, bits_per_second: int = 1_000_000) -> FrameEncoder:
    return FrameEncoder(codec, Tuning(bits_per_second), width=SIZE, height=SIZE, fps=FPS)


def decoded(codec: Codec, packets: list[Encoded]) -> list[np.ndarray]:
    """RGB pictures in -1..1, from a decoder that has seen nothing but these packets."""
    name = {Codec.JPEG: "mjpeg", Codec.H264: "h264", Codec.VP8: "vp8"}[codec]
    context = av.VideoCodecContext.create(name, "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_count = 1
    frames = [frame for packet in packets for frame in context.decode(av.Packet(packet.payload))]
    frames += context.decode(None)
    return [frame.to_ndarray(format="rgb24") / 127.5 - 1 for frame in frames]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * math.log10(float(np.mean((a - b) ** 2)) / 4)


@pytest.mark.parametrize("codec", Codec)
def test_streams_decode_to_what_went_in(codec: Codec) -> None:
    stream = encoder(codec)
    video = moving(24)
    frames = to_pixels(video, codec.pixels)
    packets = stream.encode(frames[:12], 0) + stream.encode(frames[12:], 12)
    assert [packet.frame for packet in packets] == list(range(24))
    assert packets[0].key
    assert all(packet.key for packet in packets) == (codec is Codec.JPEG)
    pictures = decoded(codec, packets)
    assert len(pictures) == 24
    worst = min(
        psnr(picture, video[:, n].permute(1, 2, 0).numpy()) for n, picture in enumerate(pictures)
    )
    assert worst > 28  # a wrong matrix or range gives 15 to 22


@pytest.mark.parametrize("codec", [Codec.H264, Codec.VP8])
def test_key_frames_come_on_request_and_start_a_stream(codec: Codec) -> None:
    stream = encoder(codec)
    frames = to_pixels(moving(24), codec.pixels)
    before = stream.encode(frames[:12], 0)
    stream.request_key_frame()
    after = stream.encode(frames[12:], 12)
    assert [packet.frame for packet in before + after if packet.key] == [0, 12]
    assert len(decoded(codec, after)) == 12


@pytest.mark.parametrize("codec", [Codec.H264, Codec.VP8])
def test_dropped_frames_are_followed_by_a_key_frame(codec: Codec) -> None:
    """After an interruption media time goes back, and unseen pictures are referred to no more."""
    stream = encoder(codec)
    frames = to_pixels(moving(24), codec.pixels)
    stream.encode(frames, 0)
    again = stream.encode(frames[12:], 12)
    assert [(packet.frame, packet.key) for packet in again[:2]] == [(12, True), (13, False)]
    assert len(decoded(codec, again)) == 12


@pytest.mark.parametrize("codec", [Codec.H264, Codec.VP8])
def test_bitrate_follows_on_request(codec: Codec) -> None:
    stream = encoder(codec, bits_per_second=800_000)
    noise = torch.Generator().manual_seed(0)
    video = moving(100) + 0.3 * torch.randn(3, 100, SIZE, SIZE, generator=noise)
    frames = to_pixels(video, codec.pixels)

    def rate(packets: list[Encoded]) -> float:
        return 8 * FPS * sum(len(packet.payload) for packet in packets) / len(packets)

    high = rate(stream.encode(frames[:50], 0)[10:])
    stream.tune(replace(stream.tuning, bits_per_second=200_000))
    lowered = stream.encode(frames[50:], 50)
    assert high > 600_000
    assert rate(lowered[10:]) < 300_000
    assert lowered[0].key
    assert len(decoded(codec, lowered)) == 50


@pytest.mark.parametrize("codec", Codec)
def test_a_session_leaves_encoded(codec: Codec) -> None:
    """From latents to packets and back: the picture that raw RGB shows."""
    spec = StreamSpec(16000, FPS, 3, 4, SIZE, SIZE)
    came: dict[Pixels, list[Decoded]] = {Pixels.RGB24: [], codec.pixels: []}
    for pixels, told in came.items():
        generator = torch.Generator().manual_seed(0)
        engine = Engine(
            place(random_vae(folded()), torch.device("cpu"), dtype=torch.float32),
            Limits(memory_bytes=2**30),
        )
        side = SIZE // 8
        anchor = torch.randn(4, 1, side, side, generator=generator)
        engine.open("a", Opening(spec, pixels, anchor, anchor[:, :0], 5, 0.0))
        latents = torch.randn(4, 3, side, side, generator=generator)
        engine.submit("a", Chunk(5, latents, 0.0))
        while engine.busy:
            told += [event for event in engine.step() if isinstance(event, Decoded)]
    film = encoder(codec, 4_000_000)
    packets = [
        packet
        for part in came[codec.pixels]
        for packet in film.encode(part.frames, part.first_frame)
    ]
    assert [packet.frame for packet in packets] == list(range(60, 72))
    rgb = torch.cat([part.frames for part in came[Pixels.RGB24]])
    for shown, raw in zip(decoded(codec, packets), rgb, strict=True):
        grey = np.array(
            [0.299, 0.587, 0.114]
        )  # random weights make coloured noise, which I420 halves
        assert psnr(shown @ grey, (raw.numpy() / 127.5 - 1) @ grey) > 25


def test_every_packet_comes_with_its_frame() -> None:
    """Nothing is held back: latency is part of what a codec promises here."""
    stream = encoder(Codec.H264)
    for number in range(5):
        (packet,) = stream.encode(to_pixels(moving(1, number), Pixels.I420), number)
        assert packet.frame == number


def test_h264_is_of_the_profile_that_browsers_offer() -> None:
    """Constrained baseline: profile 66 with its first two constraints."""
    first = encoder(Codec.H264).encode(to_pixels(moving(1), Pixels.I420), 0)[0].payload
    parameters = first[first.index(b"\x00\x00\x01\x67") + 4 :]
    assert parameters[0] == 66
    assert parameters[1] & 0b1100_0000 == 0b1100_0000


def test_a_hardware_encoder_is_named_only_where_it_opens() -> None:
    assert encoder_name(Codec.H264) in ("libx264", "h264_nvenc")
    assert len(encoder(Codec.H264).encode(to_pixels(moving(1), Pixels.I420), 0)) == 1


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("spec.width", (33, 32, 25)),
        ("spec.width", (0, 32, 25)),
        ("spec.height", (32, -2, 25)),
        ("spec.height", (32, 2**20, 25)),
        ("spec.fps", (32, 32, 0)),
        ("spec.fps", (32, 32, 2**31)),
    ],
)
@pytest.mark.parametrize("codec", Codec)
def test_pictures_that_no_encoder_takes_are_refused(
    codec: Codec, field: str, shape: tuple[int, int, int]
) -> None:
    width, height, fps = shape
    with pytest.raises(BadInput) as caught:
        FrameEncoder(codec, width=width, height=height, fps=fps)
    assert caught.value.field == field


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize(("side", "fps"), [(16, 1), (16, 240), (64, 25)])
def test_pictures_at_the_edge_are_taken(codec: Codec, side: int, fps: int) -> None:
    stream = FrameEncoder(codec, width=side, height=side, fps=fps)
    frame = torch.full((1, side * 3 // 2, side), 128, dtype=torch.uint8)
    (packet,) = stream.encode(frame, 0)
    assert packet.key
    assert packet.payload


@pytest.mark.parametrize(
    ("field", "tuning"),
    [
        ("bitrate", {"bits_per_second": 0}),
        ("bitrate", {"bits_per_second": 2**40}),
        ("key_frame_interval", {"key_interval": 0}),
        ("quality", {"quality": 101}),
    ],
)
def test_tunings_without_sense_are_refused(field: str, tuning: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=field):
        Tuning(**tuning)


def test_jpeg_has_the_quality_that_was_asked_for() -> None:
    frames = to_pixels(moving(1), Codec.JPEG.pixels)
    stream = encoder(Codec.JPEG)
    sizes = []
    for quality in (1, 50, 85, 100):
        stream.tune(Tuning(quality=quality))
        sizes.append(len(stream.encode(frames, 0)[0].payload))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("codec", [Codec.H264, Codec.VP8])
def test_key_frames_come_as_often_as_was_asked_for(codec: Codec) -> None:
    stream = FrameEncoder(codec, Tuning(key_interval=5), width=SIZE, height=SIZE, fps=FPS)
    packets = stream.encode(to_pixels(moving(12), codec.pixels), 0)
    assert [packet.frame for packet in packets if packet.key] == [0, 5, 10]
    stream.tune(stream.tuning)  # nothing changes, so nothing is paid
    assert not stream.encode(to_pixels(moving(1, 12), codec.pixels), 12)[0].key


def test_rgb_is_the_picture() -> None:
    frames = moving(2)
    rgb = to_pixels(frames, Pixels.RGB24)
    assert rgb.shape == (2, SIZE, SIZE, 3)
    assert (rgb.permute(3, 0, 1, 2) / 127.5 - 1 - frames).abs().max() <= 0.5 / 127 + 1e-6


@pytest.mark.parametrize(
    ("colour", "limited"),
    [
        ((-1, -1, -1), (16, 128, 128)),
        ((1, 1, 1), (235, 128, 128)),
        ((1, -1, -1), (81, 90, 240)),  # BT.601 primaries, as in every table of them
        ((-1, 1, -1), (145, 54, 34)),
        ((-1, -1, 1), (41, 240, 110)),
    ],
    ids=["black", "white", "red", "green", "blue"],
)
def test_i420_is_bt601(colour: tuple[int, int, int], limited: tuple[int, int, int]) -> None:
    frame = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    planes = to_pixels(frame, Pixels.I420)
    assert planes.shape == (1, 6, 4)
    y, u, v = torch.split(planes.flatten(), [16, 4, 4])
    for plane, value in zip((y, u, v), limited, strict=True):
        assert set(plane.tolist()) == {value}


def test_lumas_of_a_ramp_rise() -> None:
    ramp = torch.linspace(-1, 1, 64).view(1, 1, 1, 64).expand(3, 1, 2, 64)
    luma = to_pixels(ramp, Pixels.I420)[0, 0].tolist()
    assert all(a <= b for a, b in pairwise(luma))


@pytest.mark.parametrize("codec", Codec)
def test_frames_of_another_size_or_kind_are_refused(codec: Codec) -> None:
    frames = to_pixels(moving(1), codec.pixels)
    for wrong in (frames[:, :-2], frames.float(), frames[..., None]):
        with pytest.raises(BadInput, match="frames: expected uint8"):
            encoder(codec).encode(wrong, 0)
