"""The tail of the log is a function of what was said and drawn, wherever the log was cut."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from services.gateway.chunk import Chunk, Rewind, TurnEnd
from services.gateway.log import SessionLog, TailLength
from talkingmachines.media import Latents, LogTail, Mode, Pcm, SpeakerSpeech, Tensor
from talkingmachines.spec import StreamSpec

SPEC = StreamSpec(8_000, 25, 1, 4, 16, 16, lookahead_samples=80)
SIZE = SPEC.samples_per_chunk


def latents(chunk: int, *, turn: int = 1) -> Latents:
    return Latents(turn, chunk, Tensor.from_array(np.full((1, 1, 2, 2), chunk)))


def chunk(index: int, *, turn: int = 1, speakers: tuple[int, ...] = (0,)) -> Chunk:
    pcm = Pcm(
        np.arange(index * SIZE, (index + 1) * SIZE, dtype=np.int16).tobytes(),
        SPEC.sample_rate,
        first_sample=index * SIZE,
    )
    parts = tuple(SpeakerSpeech(who, Mode.SPEAKING, pcm, pcm.part(0, 80)) for who in speakers)
    return Chunk(turn=turn, chunk=index, speech=parts, ends=(TurnEnd(turn, SIZE),))


def filled(chunks: int) -> SessionLog:
    log = SessionLog(SPEC)
    for index in range(chunks):
        log.append(chunk(index, speakers=(0, 1) if index % 2 else (0,)))
        assert log.answer(latents(index))
    return log


def test_the_first_answer_wins_and_void_ones_are_known() -> None:
    log = filled(2)
    assert not log.answer(latents(1))
    assert not log.answer(latents(2))
    log.append(chunk(2, turn=3))
    assert not log.answer(latents(2, turn=2))
    assert log.answer(latents(2, turn=3))


def test_a_session_starts_without_a_tail() -> None:
    assert SessionLog(SPEC).tail(0, TailLength(3, 1)) is None


@pytest.mark.parametrize("trimmed", [0, 2, 3])
@pytest.mark.parametrize("speech", [0, 1, 3])
def test_the_tail_is_the_same_however_much_was_forgotten(trimmed: int, speech: int) -> None:
    length = TailLength(2, speech)
    whole, short = filled(6).tail(6, length), filled(6)
    short.trim(trimmed)
    assert whole is not None
    assert short.tail(6, length) == whole
    assert [part.chunk for part in whole.latents] == [4, 5]
    assert LogTail.from_proto(whole.to_proto(), at="tail") == whole


def test_the_tail_holds_speech_as_score_was_sent_it() -> None:
    log = filled(6)
    tail = log.tail(6, TailLength(1, 3))
    assert tail is not None
    assert [past.chunk for past in tail.chunks] == [3, 4, 5]
    assert [past.latents is None for past in tail.chunks] == [True, True, False]
    assert [past.speech for past in tail.chunks] == [
        entry.chunk.speech for entry in log.entries[3:]
    ]


def test_rewind_keeps_what_was_played_and_silences_the_rest() -> None:
    log = filled(6)
    log.rewind(2, 4, silent_from=3 * SIZE + 5)
    assert log.next_chunk == 4
    tail = log.tail(4, TailLength(1, 1))
    assert tail is not None
    heard = tail.chunks[-1].speech[0].speech.array()
    np.testing.assert_array_equal(heard[:5], np.arange(3 * SIZE, 3 * SIZE + 5))
    assert not heard[5:].any()
    assert log.entries[-1].chunk.ends == ()


async def test_after_a_rewind_the_played_chunk_is_shown_again_under_the_new_turn() -> None:
    log = filled(3)
    log.append(chunk(3))
    log.rewind(2, 3, silent_from=2 * SIZE)

    async def answers() -> AsyncIterator[Latents | Rewind]:
        yield Rewind(turn=2, next_chunk=3, decode_from=2, first_frame=9)
        yield latents(3)

    seen = [item async for item in log.recorded(answers())]
    assert [type(item).__name__ for item in seen] == ["Rewind", "Latents"]
    assert isinstance(seen[1], Latents)
    assert (seen[1].chunk, seen[1].turn) == (2, 2)
