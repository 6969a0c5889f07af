"""Utterances: the same however the sound is cut, none of its voice lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_bridge.local.ears import RATE, Began, Done, Ear, Ears, Filled, Paused
from tests.fakes.speech_parts import judge
from tests.llm_bridge.call import silence, voice

END_SILENCE = 0.6


def ears(*, push_to_talk: bool = False) -> Ears:
    return Ears(judge, end_silence=END_SILENCE, push_to_talk=push_to_talk)


def heard(sound: bytes, piece: int = 10**9) -> list[Ear]:
    one = ears()
    return [it for at in range(0, len(sound), piece) for it in one.push(sound[at : at + piece])]


def kinds(events: list[Ear]) -> list[str]:
    return [type(event).__name__ for event in events]


@given(st.integers(2, 4000).map(lambda half: 2 * half))
@settings(max_examples=20)
def test_pieces_of_any_size_are_heard_alike(piece: int) -> None:
    sound = silence(0.5) + voice(0.7) + silence(0.3) + voice(0.4) + silence(1.0)
    assert heard(sound, piece) == heard(sound)


def test_an_utterance_has_its_place_its_length_and_a_little_around() -> None:
    began, paused, done = heard(silence(1.0) + voice(0.8) + silence(1.0))
    assert isinstance(began, Began)
    assert isinstance(paused, Paused)
    assert isinstance(done, Done)
    assert began.at == pytest.approx(1.0, abs=0.04)
    assert paused.at == pytest.approx(1.8, abs=0.04)
    assert (done.start, done.end) == pytest.approx((began.at, paused.at))
    assert done.voiced == pytest.approx(0.8, abs=0.05)
    assert paused.sound == done.sound  # so what was recognised at the pause holds
    assert len(done.sound) / 2 / RATE == pytest.approx(0.8 + 0.3 + 0.12, abs=0.08)
    assert voice(0.8)[2000:-2000] in done.sound


@given(st.lists(st.tuples(st.floats(0.1, 1.5), st.floats(0.25, 1.5)), max_size=6))
@settings(max_examples=30)
def test_voice_and_silence_in_any_order_make_whole_utterances(
    spans: list[tuple[float, float]],
) -> None:
    sound = b"".join(voice(loud) + silence(quiet) for loud, quiet in spans) + silence(1.0)
    events = heard(sound)
    speaking = False
    for event in events:
        match event:
            case Began():
                speaking = True
            case Paused() | Done():
                assert speaking or isinstance(event, Done)
                speaking = False
    dones = [event for event in events if isinstance(event, Done)]
    voiced = sum(done.voiced for done in dones)
    assert voiced == pytest.approx(sum(loud for loud, _ in spans), abs=0.07 * len(spans))
    # Every silence that is long enough ends an utterance, and none that is clearly shorter.
    longs = sum(quiet >= END_SILENCE + 0.05 for _, quiet in spans[:-1]) + bool(spans)
    shorts = sum(quiet < END_SILENCE - 0.05 for _, quiet in spans[:-1])
    assert longs <= len(dones) <= len(spans) - shorts


def test_clicks_are_no_utterance() -> None:
    assert heard(silence(0.5) + voice(0.03) + silence(0.5) + voice(0.03) + silence(1)) == []


def test_a_very_long_utterance_comes_in_parts_without_a_gap() -> None:
    sound = voice(60.0)
    events = heard(sound + silence(1.0))
    parts = [event.sound for event in events if isinstance(event, Filled | Done)]
    assert len(parts) == 3
    assert max(map(len, parts)) <= 2 * 30 * RATE
    whole = np.frombuffer(b"".join(parts), "<i2")
    assert np.array_equal(whole[: 60 * RATE], np.frombuffer(sound, "<i2"))


def test_with_push_to_talk_only_the_button_ends_an_utterance() -> None:
    one = ears(push_to_talk=True)
    sound = voice(0.5) + silence(2.0) + voice(0.5)
    assert list(one.push(sound)) == []
    done = one.release()
    assert done.voiced == pytest.approx(1.0, abs=0.1)
    assert sound[: 3 * RATE] in done.sound
    assert one.release().voiced == 0
    assert one.release().sound == b""


def test_with_push_to_talk_nobody_is_asked_to_recognise_silence() -> None:
    one = ears(push_to_talk=True)
    assert list(one.push(silence(90.0))) == []
