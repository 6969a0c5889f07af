"""Numbers about time agree with each other for every stream that can exist."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from talkingmachines.errors import BadInput
from talkingmachines.spec import StreamSpec

WAN = StreamSpec(
    sample_rate=16_000,
    fps=16,
    latents_per_chunk=3,
    frames_per_latent=4,
    width=512,
    height=512,
    lookahead_samples=1_600,
)


@st.composite
def specs(draw: st.DrawFn) -> StreamSpec:
    rate, fps = draw(st.sampled_from([16_000, 24_000, 48_000])), draw(st.integers(1, 60))
    latents, frames = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    assume(rate * latents * frames % fps == 0)
    return StreamSpec(rate, fps, latents, frames, 64, 64)


def test_the_papers_chunk_is_three_quarters_of_a_second() -> None:
    assert WAN.frames_per_chunk == 12
    assert WAN.samples_per_chunk == 12_000
    assert WAN.chunk_seconds == 0.75
    assert WAN.lookahead_seconds == 0.1


@given(specs(), st.integers(0, 10**9))
def test_chunks_frames_and_samples_lie_on_one_clock(spec: StreamSpec, chunk: int) -> None:
    assert spec.sample_of_frame(spec.first_frame(chunk)) == spec.first_sample(chunk)
    assert spec.chunk_of_sample(spec.first_sample(chunk)) == chunk
    assert spec.chunk_of_sample(spec.first_sample(chunk + 1) - 1) == chunk
    assert spec.frame_seconds(spec.first_frame(chunk)) == pytest.approx(chunk * spec.chunk_seconds)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sample_rate", 0), ("fps", -1), ("latents_per_chunk", 0), ("lookahead_samples", -1)],
)
def test_impossible_numbers_are_named(name: str, value: int) -> None:
    numbers = {field: getattr(WAN, field) for field in StreamSpec.__slots__} | {name: value}
    with pytest.raises(BadInput) as caught:
        StreamSpec(**numbers)
    assert caught.value.field == name


def test_a_chunk_is_a_whole_number_of_samples() -> None:
    with pytest.raises(BadInput, match="whole number of samples"):
        StreamSpec(16_000, 23, 3, 4, 512, 512)
