"""A session's own values over the avatar's: set replaces, also by nothing; not set stays."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from services.gateway.persona import check_persona, laid_over
from talkingmachines.errors import BadInput
from talkingmachines.v1.avatar_pb2 import TURN_DETECTION_MANUAL, Persona, Tool, TurnTaking

ADA = Persona(
    instructions="Be brief.",
    voice="alto",
    greeting="Hello.",
    tools=[Tool(name="look_up", parameters_json="{}")],
    turn_taking=TurnTaking(uninterruptible=True, end_silence=Duration(seconds=1)),
)


def over(own: Persona, **expected: object) -> None:
    whole = Persona()
    whole.CopyFrom(ADA)
    for name, value in expected.items():
        whole.ClearField(name)  # type: ignore[arg-type]
        whole.MergeFrom(Persona(**{name: value}))  # type: ignore[arg-type]
    assert laid_over(ADA, own) == whole


@pytest.mark.parametrize("text", ["", "Be kind."])
@pytest.mark.parametrize("field", ["instructions", "voice", "greeting", "language"])
def test_a_text_that_is_set_replaces_the_avatar_s_also_by_nothing(field: str, text: str) -> None:
    over(Persona(**{field: text}), **{field: text})  # type: ignore[arg-type]


def test_what_is_not_set_stays() -> None:
    assert laid_over(ADA, Persona()) == ADA


def test_tools_and_turn_taking_are_replaced_as_a_whole() -> None:
    other = [Tool(name="book", parameters_json="{}")]
    over(Persona(tools=other), tools=other)
    over(Persona(no_tools=True), tools=[])
    manual = TurnTaking(detection=TURN_DETECTION_MANUAL)
    over(Persona(turn_taking=manual), turn_taking=manual)


def test_tools_are_given_or_left_out() -> None:
    with pytest.raises(BadInput, match=r"open\.persona\.no_tools"):
        check_persona(Persona(no_tools=True, tools=ADA.tools), at="open.persona")
