"""A VAE replica over real gRPC: what it shows, whom it refuses, how it lets go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.runtime.attachments import Terms
from services.vae import checkpoint
from services.vae.admission import Limits
from services.vae.engine import Engine
from services.vae.pixels import Pixels
from services.vae.runner import place
from services.vae.session import Chunk, Decoded, Opening
from talkingmachines import duration
from talkingmachines.errors import BadInput, NoCapacity, TimedOut, Unauthenticated, Unavailable
from talkingmachines.media import Tensor
from talkingmachines.picture import Codec, EncodedPicture, PixelFormat, RawPicture, VideoFormat
from talkingmachines.v1 import media_pb2, vae_pb2
from tests.vae import served
from tests.vae.served import (
    FRAMES,
    SPEC,
    Call,
    Caller,
    Picture,
    Running,
    encoded,
    keys,
    raw,
    serving,
    shown,
)

CHUNKS = 6
MOVING = [Codec.H264, Codec.VP8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.write_checkpoint(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, Picture]:
    """What the engine shows of two sessions, without any wire: [F, H, W, 3]."""
    runner = place(checkpoint.load(folder), torch.device("cpu"), dtype=torch.float32)
    engine = Engine(runner, Limits(memory_bytes=1 << 30))
    pictures = {}
    for seed in (0, 1):
        call, got = Call(seed), []
        opening = Opening(SPEC, Pixels.RGB24, call.anchor, call.anchor[:, :0], 0, 0.0)
        engine.open("a", opening)
        for number in range(CHUNKS):
            engine.submit("a", Chunk(number, call.chunk(number), 0.0))
        while engine.busy:
            got += [one.frames.numpy() for one in engine.step() if isinstance(one, Decoded)]
        engine.close("a")
        pictures[seed] = np.concatenate(got)
    return pictures


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Running]:
    async with serving(served.settings(folder)) as there:
        yield there


def part(pictures: Picture, first: int, last: int) -> Picture:
    """Chunks `first` to `last`, without that."""
    return pictures[FRAMES * first : FRAMES * last]


def psnr(a: Picture, b: Picture) -> float:
    """Of what is light and dark: random weights make coloured noise, whose chroma is halved."""
    grey = np.array([0.299, 0.587, 0.114])
    return float(10 * np.log10(255**2 / np.mean((a @ grey - b @ grey) ** 2)))


async def test_it_says_what_it_has_loaded(running: Running, folder: Path) -> None:
    loaded = await running.describe(width=32, height=32)
    assert loaded.checkpoint == checkpoint.identity(checkpoint.load(folder))
    assert (loaded.latent_channels, loaded.spatial_stride, loaded.frames_per_latent) == (4, 8, 4)
    assert loaded.tail_latents == checkpoint.load(folder).reach
    assert loaded.session_bytes > 10_000
    assert loaded.capacity == media_pb2.Capacity(sessions=0, slots=3)
    assert (await running.describe()).session_bytes == 0
    for size in ({"width": 32}, {"width": 36, "height": 32}, {"width": 2**31, "height": 32}):
        with pytest.raises(BadInput, match=r"width|height"):
            await running.describe(**size)


async def test_pictures_become_anchors(running: Running, folder: Path) -> None:
    request = vae_pb2.EncodeRequest(image=served.image())
    made = await running.stub.Encode(request)
    assert made.checkpoint == (await running.describe()).checkpoint
    anchor = torch.from_numpy(Tensor.from_proto(made.anchor, at="anchor").array().copy())
    runner = place(checkpoint.load(folder), torch.device("cpu"), dtype=torch.float32)
    picture = torch.frombuffer(bytearray(request.image.pixels), dtype=torch.uint8)
    engine = Engine(runner, Limits(memory_bytes=1 << 30))
    assert anchor.equal(engine.encode(picture.view(1, 32, 32, 3)))


@pytest.mark.parametrize(
    ("image", "field"),
    [
        (served.image(36), "image.height"),
        (served.image(32, PixelFormat.I420), "image.pixel_format"),
        (
            media_pb2.RawPicture(
                pixel_format=media_pb2.PIXEL_FORMAT_RGB24, width=32, height=32, pixels=b"1"
            ),
            "image.pixels",
        ),
        (media_pb2.RawPicture(), "image.pixel_format"),
        (media_pb2.RawPicture(pixel_format=media_pb2.PIXEL_FORMAT_RGB24), "image.width and height"),
    ],
    ids=["stride", "layout", "short", "nothing", "empty"],
)
async def test_pictures_that_do_not_fit_are_refused(
    running: Running, image: media_pb2.RawPicture, field: str
) -> None:
    with pytest.raises(BadInput) as refused:
        await running.stub.Encode(vae_pb2.EncodeRequest(image=image))
    assert refused.value.field == field


async def test_what_is_streamed_is_what_the_engine_shows(
    running: Running, expected: dict[int, Picture]
) -> None:
    ada = await Caller(running.stub, Call()).attach()
    assert ada.attached is not None
    assert 48 <= duration.from_proto(ada.attached.max_age) <= 72
    assert ada.attached.tail_latents == (await running.describe()).tail_latents
    assert ada.attached.capacity.sessions == 1
    assert np.array_equal(raw(await ada.decode(CHUNKS)), expected[0])


async def test_several_chunks_may_be_under_way(
    running: Running, expected: dict[int, Picture]
) -> None:
    """Also before the attachment stands; and all are answered after half-closing."""
    ada = Caller(running.stub, Call())
    ada.send(attach=ada.header())
    for number in range(CHUNKS):
        ada.ask(number)
    ada.half_close()
    assert (await ada.next()).HasField("attached")
    got = [frame for _ in range(CHUNKS) for frame in await ada.frames()]
    assert np.array_equal(raw(got), expected[0])
    with pytest.raises(StopAsyncIteration):
        await ada.next()
    await running.until(0)


async def test_sessions_at_once_never_mix(running: Running, expected: dict[int, Picture]) -> None:
    both = [await Caller(running.stub, Call(seed)).attach() for seed in expected]
    decoded = await asyncio.gather(*(one.decode(CHUNKS) for one in both))
    for seed, frames in enumerate(decoded):
        assert np.array_equal(raw(frames), expected[seed])


async def test_attached_elsewhere_it_goes_on_with_the_same_frames(
    running: Running, folder: Path, expected: dict[int, Picture]
) -> None:
    ada = await Caller(running.stub, Call()).attach()
    await ada.decode(4)
    async with serving(served.settings(folder)) as elsewhere:
        again = await Caller(elsewhere.stub, ada.call).attach()
        assert np.array_equal(raw(await again.decode(2)), part(expected[0], 4, 6))


async def test_the_same_session_may_be_attached_here_twice(
    running: Running, expected: dict[int, Picture]
) -> None:
    """As while it moves, where there is one replica."""
    ada = await Caller(running.stub, Call()).attach()
    await ada.decode(2)
    again = await Caller(running.stub, ada.call).attach()
    ada.half_close()
    assert np.array_equal(raw(await again.decode()), part(expected[0], 2, 3))


@pytest.mark.parametrize("turn", [0, 1], ids=["brought-up-to-date", "interrupted"])
async def test_a_rewind_goes_on_from_the_tail(
    running: Running, expected: dict[int, Picture], turn: int
) -> None:
    ada = await Caller(running.stub, Call()).attach()
    await ada.decode(2)
    for ahead in range(2, 5):
        ada.ask(ahead)
    await ada.frame()
    ada.rewind(turn, 3)
    ada.ask(skip=5)
    first = SPEC.first_frame(3) + 5
    # What was made before the rewind was read is still on the wire: chunks 2 to 4.
    while (frame := await ada.frame()).frame != first or frame.turn != turn:
        assert frame.turn == 0
    rest = [frame, *[await ada.frame() for _ in range(FRAMES - 6)]]
    assert {one.turn for one in rest} == {turn}
    skipped = part(expected[0], 3, 4)[5:]
    assert np.abs(raw(rest).astype(int) - skipped.astype(int)).max() <= 1


@pytest.mark.parametrize("codec", MOVING)
async def test_the_first_packet_after_attaching_or_a_rewind_decodes_alone(
    running: Running, codec: Codec
) -> None:
    video = encoded(codec, bitrate=50_000_000)
    seen = await Caller(running.stub, Call()).attach()
    expected = raw(await seen.decode(4))
    ada = await Caller(running.stub, Call(), video).attach()
    whole = await ada.decode(2)
    assert keys(whole) == [0]
    again = await Caller(running.stub, Call(chunks=1), video).attach()
    again.ask(skip=3)
    late = await again.frames(FRAMES - 3)
    assert keys(late) == [FRAMES + 3]
    again.rewind(1, 3)
    rewound = await again.decode()
    assert keys(rewound) == [3 * FRAMES]
    for frames in (whole, late, rewound):
        first = frames[0].frame
        pictures = shown(frames)
        assert len(pictures) == len(frames)
        assert psnr(pictures, expected[first : first + len(frames)]) > 25


async def test_key_frames_come_when_they_are_asked_for(running: Running) -> None:
    ada = await Caller(running.stub, Call(), encoded(Codec.VP8)).attach()
    await ada.decode()
    ada.send(key_frame=media_pb2.KeyFrameRequest())
    asked = await ada.decode()
    assert keys(asked) == [FRAMES]
    assert len(shown(asked)) == FRAMES


async def test_what_is_left_open_is_filled_in_and_changes_on_request(running: Running) -> None:
    ada = await Caller(running.stub, Call(), encoded(Codec.H264, key_frame_interval=4)).attach()
    assert ada.attached is not None
    told = ada.attached.video
    assert (told.codec, told.settings.key_frame_interval) == (media_pb2.CODEC_H264, 4)
    assert told.settings.bitrate == 1_500_000
    assert told.settings.quality == 85
    assert keys(await ada.decode()) == [0, 4, 8]
    ada.send(settings=media_pb2.VideoSettings(key_frame_interval=100))
    assert keys(await ada.decode(2)) == [FRAMES]


async def test_jpeg_frames_stand_alone_and_have_the_quality_asked_for(running: Running) -> None:
    ada = await Caller(running.stub, Call(), encoded(Codec.JPEG, quality=20)).attach()
    coarse = await ada.decode()
    assert keys(coarse) == list(range(FRAMES))
    assert shown([coarse[7]]).shape == (1, 32, 32, 3)
    ada.send(settings=media_pb2.VideoSettings(quality=95))
    size = [
        sum(len(one.picture.payload) for one in frames if isinstance(one.picture, EncodedPicture))
        for frames in (coarse, await ada.decode())
    ]
    assert size[1] > 1.5 * size[0]


async def test_i420_is_half_the_bytes(running: Running) -> None:
    ada = await Caller(running.stub, Call(), VideoFormat(PixelFormat.I420)).attach()
    for frame in await ada.decode():
        assert isinstance(frame.picture, RawPicture)
        assert frame.picture.pixel_format is PixelFormat.I420
        assert len(frame.picture.pixels) == 32 * 32 * 3 // 2


Spoil = Callable[[Caller], None]


def _chunk(number: int | None = None, **changes: Any) -> Spoil:
    return lambda caller: caller.ask(number, **changes)


def _latents(change: Callable[[media_pb2.Latents], None]) -> Spoil:
    def spoil(caller: Caller) -> None:
        latents = media_pb2.Latents(tensor=served.to_tensor(caller.call.chunk(0)).to_proto())
        change(latents)
        caller.ask(latents=latents)

    return spoil


def _infinite(latents: media_pb2.Latents) -> None:
    latents.tensor.payload = b"\xff" * len(latents.tensor.payload)


def _huge(latents: media_pb2.Latents) -> None:
    latents.tensor.CopyFrom(served.to_tensor(torch.full((4, 3, 4, 4), 3e38)).to_proto())


def _one_short(latents: media_pb2.Latents) -> None:
    latents.tensor.CopyFrom(served.to_tensor(torch.zeros(4, 2, 4, 4)).to_proto())


def _cut(latents: media_pb2.Latents) -> None:
    latents.tensor.payload = latents.tensor.payload[:-1]


def _rewind(**tail: Any) -> Spoil:
    message = vae_pb2.DecodeRewind(tail=media_pb2.LogTail(**tail))
    return lambda caller: caller.send(rewind=message)


def _settings(**values: int) -> Spoil:
    return lambda caller: caller.send(settings=media_pb2.VideoSettings(**values))


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (_chunk(1), "chunk.latents.chunk"),
        (_chunk(slack=duration.to_proto(1e6)), "chunk.slack"),
        (_chunk(skip=FRAMES), "chunk.skip_frames"),
        (_latents(_infinite), "chunk.latents.tensor"),
        (_latents(_huge), "chunk.latents.tensor"),
        (_latents(_one_short), "chunk.latents.tensor"),
        (_latents(_cut), "chunk.latents.tensor.payload"),
        (_latents(lambda latents: latents.Clear()), "chunk.latents.tensor.data_type"),
        (_rewind(next_chunk=5), "rewind.tail.chunks"),
        (_settings(quality=50), "settings"),
        (_settings(bitrate=1), "settings.bitrate"),
        (lambda caller: caller.send(attach=caller.header()), "message"),
        (lambda caller: caller.send(), "message"),
    ],
)
async def test_whoever_breaks_the_contract_is_told_the_field(
    running: Running, spoil: Spoil, field: str
) -> None:
    ada = await Caller(running.stub, Call()).attach()
    spoil(ada)
    with pytest.raises(BadInput) as refused:
        await ada.next()
    assert refused.value.field.startswith(field)
    await running.until(0)


async def test_frames_are_skipped_only_where_they_may_be(running: Running) -> None:
    ada = await Caller(running.stub, Call()).attach()
    await ada.decode()
    ada.ask(skip=1)
    with pytest.raises(BadInput, match=r"chunk\.skip_frames"):
        await ada.next()


async def test_turns_never_go_back(running: Running, expected: dict[int, Picture]) -> None:
    ada = await Caller(running.stub, Call(turn=2)).attach()
    await ada.decode()
    ada.call.turn = 1
    ada.ask()  # of a turn that is over: dropped
    ada.call.turn = 2
    assert np.array_equal(raw(await ada.decode()), part(expected[0], 1, 2))
    ada.rewind(1, 1)
    with pytest.raises(BadInput, match=r"rewind\.turn"):
        await ada.next()


def _header(change: Callable[[vae_pb2.DecodeAttach], None], *, chunks: int = 0) -> Spoil:
    def spoil(caller: Caller) -> None:
        caller.call = Call(chunks=chunks)
        header = caller.header()
        change(header)
        caller.send(attach=header)

    return spoil


def _set(path: str, value: object) -> Callable[[vae_pb2.DecodeAttach], None]:
    def change(header: vae_pb2.DecodeAttach) -> None:
        message: Any = header
        *parents, name = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        setattr(message, name, value)

    return change


def _clear(name: str) -> Callable[[vae_pb2.DecodeAttach], None]:
    return lambda header: header.ClearField(name)  # type: ignore[arg-type]


def _forget(header: vae_pb2.DecodeAttach) -> None:
    del header.tail.chunks[:-1]


def _gap(header: vae_pb2.DecodeAttach) -> None:
    del header.tail.chunks[1]


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (_header(_clear("spec")), "attach.spec"),
        (_header(_clear("anchor")), "attach.anchor"),
        (_header(_clear("video")), "attach.video.form"),
        (_header(_set("spec.width", 36)), "attach.spec.width"),
        (_header(_set("spec.width", 64)), "attach.anchor"),
        (_header(_set("spec.height", 2**31)), "attach.spec.height"),
        (_header(_set("spec.frames_per_latent", 8)), "attach.spec"),
        (_header(_set("spec.fps", 0)), "attach.spec.fps"),
        (_header(_set("video.pixels", 9)), "attach.video.pixels"),
        (_header(_set("video.settings.bitrate", 100_000)), "attach.video.settings"),
        (_header(_set("anchor.payload", b"\xff" * 256)), "attach.anchor"),
        (_header(_forget, chunks=6), "attach.tail.chunks.latents"),
        (_header(_gap, chunks=6), "attach.tail.chunks"),
        (_header(_set("tail.next_chunk", 3)), "attach.tail"),
        (_chunk(), "message"),
        (lambda caller: caller.half_close(), "message"),
    ],
)
async def test_what_does_not_fit_is_not_attached(
    running: Running, spoil: Spoil, field: str
) -> None:
    ada = Caller(running.stub, Call())
    spoil(ada)
    with pytest.raises(BadInput) as refused:
        await ada.next()
    assert refused.value.field.startswith(field)
    await running.until(0)
    assert running.metric("tm_cache_bytes", cache="session") == 0


async def test_a_picture_that_no_encoder_takes_is_refused(running: Running) -> None:
    ada = Caller(running.stub, Call(), encoded(Codec.VP8))
    header = ada.header()
    header.spec.width = header.spec.height = 8
    ada.send(attach=header)
    with pytest.raises(BadInput, match=r"attach\.spec\.width"):
        await ada.next()


async def test_who_says_nothing_does_not_hold_a_slot(running: Running) -> None:
    silent = Caller(running.stub, Call())
    with pytest.raises(TimedOut):
        await silent.next()
    await running.until(0)


async def test_a_flood_ends_alone(running: Running, expected: dict[int, Picture]) -> None:
    ada = await Caller(running.stub, Call()).attach()
    flood = await Caller(running.stub, Call(1)).attach()
    for number in range(300):
        flood.ask(number)
    ended = asyncio.create_task(flood.read_all())
    assert np.array_equal(raw(await ada.decode(CHUNKS)), expected[0])
    flood.half_close()
    with pytest.raises((BadInput, StopAsyncIteration)):
        await ended
    await running.until(1)


async def test_who_never_reads_is_ended_alone(folder: Path, expected: dict[int, Picture]) -> None:
    terms = Terms(idle_seconds=3)
    async with serving(served.settings(folder, terms=terms)) as there:
        deaf = await Caller(there.stub, Call(1)).attach()
        for number in range(30):
            deaf.ask(number)
        ada = await Caller(there.stub, Call()).attach()
        assert np.array_equal(raw(await ada.decode(2)), part(expected[0], 0, 2))
        ada.half_close()
        await there.until(0)


async def test_who_vanishes_frees_the_state(running: Running) -> None:
    ada = await Caller(running.stub, Call()).attach()
    assert running.metric("tm_cache_bytes", cache="session") > 0
    ada.ask()
    ada.rpc.cancel()
    await running.until(0)
    again = await Caller(running.stub, Call()).attach()
    await again.decode()
    size = (await running.describe(width=32, height=32)).session_bytes
    assert running.metric("tm_cache_bytes", cache="session") == size
    assert running.metric("tm_engine_slots_used") == 1


async def test_a_full_replica_says_so(running: Running) -> None:
    attached = [await Caller(running.stub, Call(seed)).attach() for seed in range(3)]
    late = Caller(running.stub, Call())
    late.send(attach=late.header())
    with pytest.raises(NoCapacity):
        await late.next()
    await running.until(3)
    attached.append(await Caller(running.stub, Call(seed=3, chunks=1)).attach())  # it moves here
    attached[0].half_close()
    attached[1].half_close()
    await running.until(2)
    await Caller(running.stub, Call()).attach()


async def test_a_state_that_does_not_fit_is_refused(running: Running, folder: Path) -> None:
    size = (await running.describe(width=32, height=32)).session_bytes
    async with serving(served.settings(folder, memory_bytes=size, sessions=3)) as there:
        ada = await Caller(there.stub, Call()).attach()
        late = Caller(there.stub, Call(chunks=1))  # it moves here: the headroom is for such
        late.send(attach=late.header())
        with pytest.raises(NoCapacity, match="MiB"):
            await late.next()
        assert there.metric("tm_engine_refusals_total", reason="capacity") == 1
        assert (await there.describe()).capacity.slots == 1
        ada.half_close()
        await there.until(0)
        await Caller(there.stub, Call()).attach()


async def test_an_attachment_works_on_until_its_time_is_over(
    folder: Path, expected: dict[int, Picture]
) -> None:
    terms = Terms(max_age_seconds=0.2, time_left_seconds=3)
    async with serving(served.settings(folder, terms=terms)) as there:
        ada = await Caller(there.stub, Call()).attach()
        order = (await ada.next()).hand_over
        assert order.reason == media_pb2.HAND_OVER_REASON_AGE
        assert np.array_equal(raw(await ada.decode()), part(expected[0], 0, 1))
        with pytest.raises(Unavailable):
            await ada.next()
        await there.until(0)


async def test_a_drain_asks_to_leave_and_the_session_goes_on_elsewhere(
    folder: Path, expected: dict[int, Picture]
) -> None:
    async with serving(served.settings(folder)) as here, serving(served.settings(folder)) as there:
        ada = await Caller(here.stub, Call()).attach()
        await ada.decode(2)
        stopping = asyncio.create_task(here.server.stop())
        assert (await ada.next()).hand_over.reason == media_pb2.HAND_OVER_REASON_DRAINING
        other = await Caller(there.stub, Call(chunks=2)).attach()
        assert np.array_equal(raw(await ada.decode()), part(expected[0], 2, 3))  # until it is left
        ada.half_close()
        await stopping
        other.rewind(0, 3)  # up to date with what was decoded since
        assert np.array_equal(raw(await other.decode(2)), part(expected[0], 3, 5))


async def test_strangers_are_kept_out(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret-of-the-fleet\n")
    async with serving(served.settings(folder, token_file=file)) as there:
        with pytest.raises(Unauthenticated):
            await there.describe()
        with pytest.raises(Unauthenticated):
            await there.stub.Encode(vae_pb2.EncodeRequest(image=served.image()))
        stranger = Caller(there.stub, Call())
        stranger.send(attach=stranger.header())
        with pytest.raises(Unauthenticated):
            await stranger.next()
        known = (("authorization", "Bearer secret-of-the-fleet"),)
        await Caller(there.stub, Call(), metadata=known).attach()


async def test_it_counts_what_it_does(running: Running) -> None:
    ada = await Caller(running.stub, Call(), encoded(Codec.JPEG)).attach()
    await ada.decode(3)
    ada.ask(slack=duration.to_proto(-1))
    await ada.frames()
    ada.half_close()
    await running.until(0)
    metric = running.metric
    assert metric("tm_engine_chunks_total") == 4
    assert metric("tm_engine_late_chunks_total") >= 1
    for stage in ("wait", "decode", "encode"):
        assert metric("tm_engine_step_seconds_count", stage=stage) == 4
        assert metric("tm_engine_step_seconds_sum", stage=stage) >= 0
    assert metric("tm_engine_attach_seconds_count") == 1
    assert metric("tm_engine_batch_sessions_sum") == 12  # a pass for each latent
    assert metric("tm_device_busy_seconds_total") > 0
    assert metric("tm_device_memory_bytes", kind="used") > 0
    assert metric("tm_device_memory_bytes", kind="used") < metric(
        "tm_device_memory_bytes", kind="total"
    )


async def test_a_rehearsed_replica_knows_how_many_it_can_serve(folder: Path) -> None:
    hint = {"width": 32, "height": 32, "fps": 25}
    async with serving(served.settings(folder, rehearsal=hint, sessions=1000, load=0.5)) as there:
        assert 1 <= (await there.describe()).capacity.slots < 1000
