"""What a client sends again, whatever was held of it: nothing is lost, nothing comes twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkingmachines.errors import BadInput
from talkingmachines.media import Pcm
from talkingmachines.outgoing import Outgoing
from talkingmachines.v1.avatar_pb2 import PlaybackPosition, TalkRequest

RATE = 8_000
SPEECH = np.arange(12_000, dtype="<i2").tobytes()


def outgoing(limit: float = 30.0) -> Outgoing:
    made = Outgoing(replays=True)
    made.limit = limit
    return made


def sent(one: Outgoing, now: float = 0.0) -> Iterator[TalkRequest]:
    while (request := one.next(now)) is not None:
        yield request


def spoken(requests: list[TalkRequest]) -> bytes:
    return b"".join(request.audio.samples for request in requests)


def kinds(requests: list[TalkRequest]) -> list[str | None]:
    return [request.WhichOneof("message") for request in requests]


@given(
    cuts=st.lists(st.integers(1, 5_000), max_size=8),
    before=st.integers(0, 20),
    held=st.integers(0, 12_000),
)
def test_a_new_connection_gets_what_the_session_does_not_hold(
    cuts: list[int], before: int, held: int
) -> None:
    one, start = outgoing(), 0
    for size in [*cuts, 12_000]:
        one.say(Pcm(SPEECH[2 * start : 2 * (start + size)], RATE))
        start += size
    one.end(0)
    first = [request for _, request in zip(range(before), sent(one), strict=False)]
    held = min(held, len(spoken(first)) // 2)
    one.resume({0: held}, turn=0, now=0.0)
    again = list(sent(one))
    assert spoken(again) == SPEECH[2 * held :]
    assert kinds(again)[-1] == "end_of_speech"


def test_no_more_is_sent_than_may_wait_at_the_server() -> None:
    one = outgoing(limit=1.0)
    one.say(Pcm(bytes(2 * RATE * 4), RATE))
    seconds = [len(request.audio.samples) / 2 / RATE for request in sent(one)]
    assert sum(seconds) <= 1.0
    one.reported(0.7, now=0.5)
    assert one.next(0.5) is None, "what was just sent may be missing from the report"
    one.reported(0.1, now=10.0)
    assert one.next(10.0) is not None


def test_what_waits_travels_together() -> None:
    one = outgoing()
    for start in range(0, 8_000, 160):
        one.say(Pcm(SPEECH[2 * start : 2 * (start + 160)], RATE))
    requests = list(sent(one))
    assert len(requests) == 2
    assert spoken(requests) == SPEECH[:16_000]


def test_an_interruption_drops_what_is_not_sent() -> None:
    one = outgoing(limit=1.0)
    one.say(Pcm(bytes(2 * RATE * 4), RATE))
    before = spoken(list(sent(one)))
    one.interrupt(0, seen=1, now=0.0)
    one.say(Pcm(SPEECH[:400], RATE))
    one.reported(0.0, now=10.0)
    requests = list(sent(one, 10.0))
    assert kinds(requests) == ["interrupt", "audio"]
    assert spoken(requests) == SPEECH[:400]
    one.interrupted()
    one.resume({0: len(before) // 2}, turn=2, now=10.0)
    assert spoken(list(sent(one, 10.0))) == SPEECH[:400]


@pytest.mark.parametrize(("turn", "again"), [(1, ["interrupt"]), (2, [])])
def test_an_interruption_is_repeated_unless_the_session_knows_it(
    turn: int, again: list[str]
) -> None:
    one = outgoing()
    one.interrupt(0, seen=1, now=0.0)
    assert kinds(list(sent(one))) == ["interrupt"]
    one.resume({}, turn=turn, now=1.0)
    assert kinds(list(sent(one))) == again


def test_only_the_newest_position_is_worth_sending() -> None:
    one = outgoing()
    for frame in range(3):
        one.control(TalkRequest(playback=PlaybackPosition(frame=frame)))
    (request,) = sent(one)
    assert request.playback.frame == 2


def test_one_speaker_keeps_to_one_rate() -> None:
    one = outgoing()
    one.say(Pcm(bytes(8), 8_000))
    one.say(Pcm(bytes(8), 16_000, speaker=1))
    with pytest.raises(BadInput, match="8000 Hz, as before"):
        one.say(Pcm(bytes(8), 16_000))
