"""Media types survive the wire unchanged and refuse what cannot be media."""

from time import monotonic

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from talkingmachines.errors import BadInput
from talkingmachines.media import (
    DataType,
    Latents,
    LogTail,
    Mode,
    PastChunk,
    Pcm,
    SpeakerSpeech,
    Tensor,
    spec_from_proto,
    spec_to_proto,
)
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import media_pb2

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
TORCH = {
    DataType.FLOAT32: torch.float32,
    DataType.FLOAT16: torch.float16,
    DataType.BFLOAT16: torch.bfloat16,
}

sounds = st.builds(
    Pcm,
    samples=st.binary(max_size=64).map(lambda raw: raw[: len(raw) // 2 * 2]),
    sample_rate=st.integers(8_000, 96_000),
    first_sample=st.integers(0, 2**63),
    turn=u32,
    chunk=u64,
    speaker=u32,
)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> Tensor:
    shape = shape or draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=3))
    data_type = draw(st.sampled_from(DataType))
    size = int(np.prod(shape)) * data_type.bytes
    return Tensor(data_type, shape, draw(st.binary(min_size=size, max_size=size)))


speeches = st.builds(
    SpeakerSpeech,
    speaker=st.integers(0, 2**32 - 1),
    mode=st.sampled_from(Mode),
    speech=sounds,
    lookahead=sounds,
)


@st.composite
def tails(draw: st.DrawFn) -> LogTail:
    first, count = draw(st.integers(0, 1000)), draw(st.integers(0, 4))
    without = draw(st.integers(0, count))
    tensor = draw(tensors(draw(hnp.array_shapes(min_dims=4, max_dims=4, max_side=3))))
    chunks = tuple(
        PastChunk(
            chunk=first + index,
            latents=None if index < without else Latents(draw(u32), first + index, tensor),
            speech=tuple(draw(st.lists(speeches, max_size=2))),
        )
        for index in range(count)
    )
    return LogTail(next_chunk=first + count, chunks=chunks)


@given(sounds)
def test_pcm_round_trip(pcm: Pcm) -> None:
    wire = media_pb2.Pcm.FromString(pcm.to_proto().SerializeToString())
    assert Pcm.from_proto(wire, at="audio") == pcm


@given(tensors())
def test_tensor_round_trip(tensor: Tensor) -> None:
    wire = media_pb2.Tensor.FromString(tensor.to_proto().SerializeToString())
    assert Tensor.from_proto(wire, at="latents") == tensor


@given(tails())
def test_log_tail_round_trip(tail: LogTail) -> None:
    wire = media_pb2.LogTail.FromString(tail.to_proto().SerializeToString())
    assert LogTail.from_proto(wire, at="tail") == tail


def test_spec_round_trip() -> None:
    spec = StreamSpec(16_000, 25, 3, 4, 256, 192, lookahead_samples=1_600)
    wire = media_pb2.StreamSpec.FromString(spec_to_proto(spec).SerializeToString())
    assert spec_from_proto(wire, at="spec") == spec


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)), st.sampled_from(DataType))
def test_tensors_hold_the_same_bits_as_torch(
    values: np.typing.NDArray[np.float32], data_type: DataType
) -> None:
    with np.errstate(over="ignore"):  # float16 ends at 65,504
        tensor = Tensor.from_array(values, data_type)
    theirs = torch.from_numpy(values.copy()).to(TORCH[data_type])
    ours = torch.frombuffer(bytearray(tensor.payload), dtype=TORCH[data_type])
    torch.testing.assert_close(ours.reshape(values.shape), theirs, rtol=0, atol=0, equal_nan=True)
    np.testing.assert_array_equal(tensor.array(), theirs.to(torch.float32).numpy())


@given(sounds, st.data())
def test_parts_of_a_sound_keep_their_place(pcm: Pcm, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(pcm)))
    head, rest = pcm.part(0, cut), pcm.part(cut, len(pcm))
    assert head.samples + rest.samples == pcm.samples
    assert head.end_sample == rest.first_sample
    assert rest.end_sample == pcm.end_sample
    np.testing.assert_array_equal(np.concatenate([head.array(), rest.array()]), pcm.array())
    assert pcm.part(0, len(pcm) + 5) == pcm
    assert pcm.part(len(pcm) + 3, len(pcm) + 5) == pcm.part(len(pcm), len(pcm))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (media_pb2.Pcm(samples=b"abc", sample_rate=16_000), "audio.samples"),
        (media_pb2.Pcm(samples=b"ab"), "audio.sample_rate"),
        (media_pb2.Pcm(samples=b"ab", sample_rate=4_000_000), "audio.sample_rate"),
    ],
)
def test_bad_sound_is_named(message: media_pb2.Pcm, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        Pcm.from_proto(message, at="audio")
    assert caught.value.field == field


FLAT = media_pb2.Tensor(data_type=media_pb2.DATA_TYPE_FLOAT32, shape=[2], payload=b"12345678")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (media_pb2.Latents(), "chunk.latents.tensor.data_type"),
        (media_pb2.Latents(tensor=FLAT), "chunk.latents.tensor.shape"),
        (
            media_pb2.Latents(
                tensor=media_pb2.Tensor(
                    data_type=media_pb2.DATA_TYPE_BFLOAT16, shape=[1, 1, 2, 2], payload=b"1234567"
                )
            ),
            "chunk.latents.tensor.payload",
        ),
    ],
)
def test_bad_latents_are_named(message: media_pb2.Latents, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        Latents.from_proto(message, at="chunk.latents")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("next_chunk", "chunks", "field"),
    [
        (6, [3, 5], "chunks"),
        (1, [0, 1], "chunks"),
        (6, [5, 4], "chunks"),
    ],
)
def test_a_tail_with_a_gap_is_refused(next_chunk: int, chunks: list[int], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        LogTail(next_chunk, tuple(PastChunk(chunk) for chunk in chunks))
    assert caught.value.field == field


def test_the_latents_of_a_tail_are_its_last_and_of_one_shape() -> None:
    small = Tensor.from_array(np.zeros((1, 1, 1, 1), np.float32))
    large = Tensor.from_array(np.zeros((1, 1, 2, 2), np.float32))
    with pytest.raises(BadInput, match="the last chunks to have them"):
        LogTail(2, (PastChunk(0, Latents(0, 0, small)), PastChunk(1)))
    with pytest.raises(BadInput, match="one shape"):
        LogTail(2, (PastChunk(0, Latents(0, 0, small)), PastChunk(1, Latents(0, 1, large))))
    with pytest.raises(BadInput, match=r"latents\.chunk: expected 1"):
        PastChunk(1, Latents(0, 0, small))


@pytest.mark.parametrize("shape", [[2**32 - 1] * 500, [2**32 - 1] * 20_000, [2**32 - 1] * 8])
def test_a_shape_of_any_size_is_refused_at_once(shape: list[int]) -> None:
    message = media_pb2.Tensor(data_type=media_pb2.DATA_TYPE_FLOAT32, shape=shape)
    began = monotonic()
    with pytest.raises(BadInput, match=r"shape|payload"):
        Tensor.from_proto(message, at="tensor")
    assert monotonic() - began < 0.1


@pytest.mark.parametrize("wrong", [{"first_sample": -1}, {"turn": 2**32}, {"chunk": 2**64}])
def test_what_the_wire_cannot_carry_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput) as caught:
        Pcm(b"", 16_000, **wrong)
    assert [caught.value.field] == list(wrong)


def test_content_is_not_shown() -> None:
    sound = Pcm(b"hidden", 16_000)
    tensor = Tensor(DataType.FLOAT16, (3,), b"hidden")
    assert "hidden" not in f"{sound} {tensor!r}"


def test_a_bad_spec_is_named() -> None:
    with pytest.raises(BadInput) as caught:
        spec_from_proto(media_pb2.StreamSpec(sample_rate=16_000), at="attach.spec")
    assert caught.value.field == "attach.spec.fps"
