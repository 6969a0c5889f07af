"""What the next bridge is told: bounded, and never a result without its call."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.history import History
from talkingmachines.v1 import avatar_pb2

USER, CHARACTER = avatar_pb2.PARTY_USER, avatar_pb2.PARTY_CHARACTER
_IDS = st.sampled_from(["a", "b", "c"])
_SIZES = st.sampled_from([0, 10, 90_000])
_HAPPENINGS = st.lists(st.tuples(st.sampled_from(["said", "called", "answered"]), _IDS, _SIZES))


@given(_HAPPENINGS, st.integers(0, 120))
def test_it_is_bounded_and_a_result_follows_its_call(
    happenings: list[tuple[str, str, int]], words: int
) -> None:
    history = History()
    for kind, name, size in happenings:
        match kind:
            case "said":
                history.said(avatar_pb2.Transcript(party=USER, text=name * size))
            case "called":
                history.called(avatar_pb2.ToolCall(call_id=name, arguments_json="x" * size))
            case "answered":
                history.answered(avatar_pb2.ToolResult(call_id=name, result_json="x" * size))
    for number in range(words):
        history.said(avatar_pb2.Transcript(party=CHARACTER, text=f"word {number}"))
    events = history.events()
    assert len(events) <= 100
    assert sum(event.ByteSize() for event in events) <= 1_000_000
    calls, results = set[str](), set[str]()
    for event in events:
        match event.WhichOneof("event"):
            case "tool_call":
                calls.add(event.tool_call.call_id)
            case "tool_result":
                assert event.tool_result.call_id in calls - results
                results.add(event.tool_result.call_id)
    last = [event.transcript.text for event in events if event.transcript.party == CHARACTER]
    assert last == [f"word {number}" for number in range(words)][-100:]


def test_that_the_user_ever_spoke_is_not_forgotten() -> None:
    history = History()
    history.said(avatar_pb2.Transcript(party=USER, text=""))
    assert not history.user_spoke
    history.said(avatar_pb2.Transcript(party=USER, text="Hello"))
    for _ in range(200):
        history.said(avatar_pb2.Transcript(party=CHARACTER, text="Go on"))
    assert history.user_spoke
    assert {event.transcript.party for event in history.events()} == {CHARACTER}
