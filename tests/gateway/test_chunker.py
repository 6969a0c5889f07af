"""What is said is a function of what was sent; only the pauses depend on time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.chunk import Chunk
from services.gateway.chunker import Chunker
from talkingmachines.errors import BadInput
from talkingmachines.media import Mode, Pcm
from talkingmachines.spec import StreamSpec

SPEC = StreamSpec(
    sample_rate=16_000,
    fps=25,
    latents_per_chunk=3,
    frames_per_latent=4,
    width=64,
    height=64,
    lookahead_samples=1_000,
)
CHUNK = SPEC.samples_per_chunk


def speech(samples: int, *, rate: int = 16_000, seed: int = 0) -> Pcm:
    noise = np.random.default_rng(seed).integers(-20_000, 20_000, samples, dtype=np.int16)
    return Pcm(samples=noise.tobytes(), sample_rate=rate)


def pieces(pcm: Pcm, sizes: list[int]) -> list[Pcm]:
    """`pcm` cut into pieces whose sizes repeat."""
    parts, start, index = [], 0, 0
    while start < len(pcm):
        end = start + sizes[index % len(sizes)]
        parts.append(Pcm(samples=pcm.part(start, end).samples, sample_rate=pcm.sample_rate))
        start, index = end, index + 1
    return parts


def say(chunker: Chunker, parts: list[Pcm]) -> None:
    for pcm in parts:
        chunker.speak(pcm, turn=chunker.turn_for(pcm.speaker))


def spoken(chunks: list[Chunk]) -> bytes:
    return b"".join(part.speech.samples for chunk in chunks for part in chunk.speech)


def drained(chunker: Chunker, first: int = 0) -> list[Chunk]:
    chunks: list[Chunk] = []
    while not chunker.silent:
        chunks.append(chunker.cut(first + len(chunks)))
    return chunks


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@given(sizes=st.lists(st.integers(1, 9_000), min_size=1, max_size=4))
def test_pieces_of_any_size_give_the_chunks_of_the_whole(rate: int, sizes: list[int]) -> None:
    whole = speech(int(1.7 * rate), rate=rate)
    at_once, in_pieces = Chunker(SPEC, speakers=1), Chunker(SPEC, speakers=1)
    say(at_once, [whole])
    say(in_pieces, pieces(whole, sizes if min(sizes) > 50 else [size + 200 for size in sizes]))
    at_once.end(0)
    in_pieces.end(0)
    assert drained(in_pieces) == drained(at_once)


@given(
    sizes=st.lists(st.integers(100, 3_000), min_size=1, max_size=4),
    gaps=st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_late_speech_pauses_between_chunks_and_loses_nothing(
    sizes: list[int], gaps: list[bool]
) -> None:
    whole = speech(4 * CHUNK + 123)
    chunker = Chunker(SPEC, speakers=1)
    chunks: list[Chunk] = []
    for pcm, gap in zip(pieces(whole, sizes), gaps, strict=False):
        say(chunker, [pcm])
        if gap and chunker.complete:
            chunks.append(chunker.cut(len(chunks)))
    say(chunker, pieces(whole, sizes)[len(gaps) :])
    chunker.end(0)
    chunks += drained(chunker, len(chunks))
    assert spoken(chunks)[: len(whole.samples)] == whole.samples
    assert not any(spoken(chunks)[len(whole.samples) :])


def test_a_chunk_is_complete_with_its_lookahead() -> None:
    chunker = Chunker(SPEC, speakers=1)
    whole = speech(CHUNK + 1_000)
    say(chunker, [whole.part(0, CHUNK + 999)])
    assert not chunker.complete
    say(chunker, [Pcm(whole.samples[-2:], 16_000)])
    assert chunker.complete
    (part,) = chunker.cut(7).speech
    assert part.mode is Mode.SPEAKING
    assert part.speech.samples + part.lookahead.samples == whole.samples
    assert part.speech.first_sample == 7 * CHUNK
    assert part.lookahead.first_sample == 8 * CHUNK


def test_silence_becomes_speech_with_the_next_chunk() -> None:
    chunker = Chunker(SPEC, speakers=1)
    assert chunker.cut(0) == Chunk(turn=0, chunk=0)
    say(chunker, [speech(CHUNK)])
    chunker.end(0)
    chunk = chunker.cut(1)
    assert (chunk.turn, chunk.begins, chunk.mode) == (1, 0, Mode.SPEAKING)
    assert [(end.turn, end.samples) for end in chunk.ends] == [(1, CHUNK)]
    assert chunker.cut(2).mode is Mode.LISTENING


def test_an_utterance_that_is_never_ended_is_ended_by_patience() -> None:
    chunker = Chunker(SPEC, speakers=1)
    whole = speech(CHUNK + CHUNK // 2)
    say(chunker, [whole])
    chunks = [chunker.cut(index) for index in range(6)]
    assert [chunk.mode is Mode.SPEAKING for chunk in chunks] == [1, 0, 0, 0, 1, 0]
    assert spoken(chunks)[: len(whole.samples)] == whole.samples
    assert [end.samples for end in chunks[4].ends] == [CHUNK // 2]
    say(chunker, [speech(10)])
    assert chunker.newest_turn == 2


def test_an_end_that_comes_after_the_last_chunk_ends_the_turn() -> None:
    chunker = Chunker(SPEC, speakers=1)
    say(chunker, [speech(CHUNK)])
    chunker.cut(0)
    chunker.end(0)
    assert [(end.turn, end.samples) for end in chunker.cut(1).ends] == [(1, 0)]


def test_speakers_speak_together_and_take_turns() -> None:
    chunker = Chunker(SPEC, speakers=2)
    first, second = speech(2 * CHUNK), speech(CHUNK, seed=1)
    for voice, turn in [(first, 1), (second, 1)]:
        pcm = Pcm(voice.samples, 16_000, speaker=0 if voice is first else 1)
        assert chunker.turn_for(pcm.speaker) == turn
        chunker.speak(pcm, turn=turn)
    chunker.end(1)
    assert chunker.turn_for(1) == 2  # who has finished waits for the others
    chunker.speak(Pcm(second.samples, 16_000, speaker=1), turn=2)
    chunker.end(1)
    chunker.end(0)
    chunks = drained(chunker)
    assert [[part.speaker for part in chunk.speech] for chunk in chunks] == [[0, 1], [0], [1]]
    assert [chunk.turn for chunk in chunks] == [1, 1, 2]
    assert [chunk.begins for chunk in chunks] == [0, None, 1]


def test_an_interruption_forgets_what_waits() -> None:
    chunker = Chunker(SPEC, speakers=1)
    say(chunker, [speech(3 * CHUNK)])
    chunker.cut(0)
    chunker.interrupt(2)
    assert chunker.buffered_seconds == 0
    chunk = chunker.cut(1)
    assert (chunk.turn, chunk.mode) == (2, Mode.LISTENING)
    assert chunk.positions[0].sample == 3 * CHUNK
    say(chunker, [speech(CHUNK)])
    chunker.end(0)
    assert chunker.cut(2).turn == 3


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_speech_goes_on_in_another_chunker(rate: int, after: int) -> None:
    whole = speech(int(2.4 * rate), rate=rate)
    undisturbed = Chunker(SPEC, speakers=1)
    say(undisturbed, [whole])
    undisturbed.end(0)
    expected = drained(undisturbed)
    one = Chunker(SPEC, speakers=1)
    say(one, pieces(whole, [800]))
    last = [one.cut(index) for index in range(after)][-1]
    other = Chunker(SPEC, speakers=1, turn=last.turn, positions=last.positions)
    (position,) = last.positions
    say(other, [Pcm(whole.samples[2 * position.sample :], rate)])
    other.end(0)
    chunks = drained(other, after)
    assert chunks[0].begins is None
    assert len(chunks) == len(expected) - after
    got = np.frombuffer(spoken(chunks), np.int16).astype(int)
    want = np.frombuffer(spoken(expected[after:]), np.int16).astype(int)
    assert abs(got - want).max() <= (0 if rate == 16_000 else 1)


@pytest.mark.parametrize(
    ("pcm", "first", "field"),
    [
        (Pcm(b"", 16_000, speaker=1), None, "speaker"),
        (Pcm(b"", 24_000), None, "sample_rate"),
        (Pcm(b"", 16_000), 99, "first_sample"),
        (Pcm(b"", 16_000), 101, "first_sample"),
        (Pcm(b"", 16_000), 0, "first_sample"),  # the same again, not the next one
    ],
    ids=lambda value: str(value)[:12],
)
def test_speech_that_does_not_fit_is_named(pcm: Pcm, first: int | None, field: str) -> None:
    chunker = Chunker(SPEC, speakers=1)
    chunker.speak(speech(100), turn=1, first_sample=0)
    with pytest.raises(BadInput) as error:
        chunker.speak(pcm, turn=1, first_sample=first)
    assert error.value.field == field
    chunker.speak(Pcm(b"", 16_000), turn=1, first_sample=100)
