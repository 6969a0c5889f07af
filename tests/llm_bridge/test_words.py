"""From what is written to what is spoken: clauses and numbers; and what the script writes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_bridge.local.clauses import clauses
from services.llm_bridge.local.numerals import in_words
from services.llm_bridge.local.script import ScriptWriter
from services.llm_bridge.local.writer import messages
from services.llm_bridge.persona import Persona
from services.llm_bridge.speech_model import CheckIn, Line, Party, Reply

TEXT = (
    "Well, that is a long story. Dr. Brown told it to me in 1984! Do you want to hear it? "
    "It begins, as such stories do, with rain"
)


async def pieces(text: str, size: int) -> AsyncIterator[str]:
    for at in range(0, len(text), size):
        yield text[at : at + size]


def cut(text: str, size: int = 7) -> list[str]:
    async def main() -> list[str]:
        return [clause async for clause in clauses(pieces(text, size))]

    return asyncio.run(main())


def test_clauses_are_sentences_after_a_short_first() -> None:
    assert cut(TEXT) == [
        "Well, that is a long story.",
        "Dr. Brown told it to me in 1984!",
        "Do you want to hear it?",
        "It begins, as such stories do, with rain",
    ]
    assert cut("I would say so, but who knows what comes of it.")[0] == "I would say so,"


@given(st.text(alphabet="abc ,.!?\n", max_size=400), st.integers(1, 50))
def test_no_word_is_lost_wherever_pieces_end(text: str, size: int) -> None:
    assert "".join(cut(text, size)).split() == "".join(cut(text, 1)).split()
    assert re.findall(r"\w+", " ".join(cut(text, size))) == re.findall(r"\w+", text)


def test_the_first_clause_does_not_wait_for_the_rest() -> None:
    async def main() -> tuple[str, bool]:
        more = False

        async def slow() -> AsyncIterator[str]:
            nonlocal more
            yield "That is a good question, "
            yield "I "
            more = True
            yield "think."

        async for clause in clauses(slow()):
            return clause, more
        raise AssertionError

    assert asyncio.run(main()) == ("That is a good question,", False)


def test_markup_is_not_spoken() -> None:
    assert cut("**Bold** and [a link](https://x.org/y) _here_ 😀.")[0].startswith("Bold and")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("0", "zero"),
        ("21", "twenty one"),
        ("105", "one hundred five"),
        ("1984", "nineteen eighty four"),
        ("1900", "nineteen hundred"),
        ("1905", "nineteen oh five"),
        ("2000", "two thousand"),
        ("12000", "twelve thousand"),
        ("1000000", "one million"),
        ("3.14", "three point one four"),
        ("12345678901234", "one two three four five six seven eight nine zero one two three four"),
    ],
)
def test_numbers_are_said_as_people_say_them(number: str, words: str) -> None:
    assert in_words(number) == words


ADA = Persona(
    instructions="You are Ada, a retired lighthouse keeper. You love storms and old maps."
)
BRUNO = Persona(instructions="You are Bruno, the chef of a tiny restaurant. You like your knives.")


def reply(persona: Persona, *said: str) -> str:
    lines: list[Line] = []
    for text in said[:-1]:
        lines += [Line(Party.USER, text), Line(Party.CHARACTER, "I see.")]
    lines.append(Line(Party.USER, said[-1]))

    async def main() -> str:
        return "".join([it async for it in ScriptWriter().write(persona, lines, Reply())])

    return asyncio.run(main())


def test_the_script_is_in_character() -> None:
    assert reply(ADA, "Who are you?").startswith("I'm Ada, a retired lighthouse keeper.")
    assert "storms and old maps" in reply(ADA, "Tell me about yourself.")
    assert reply(BRUNO, "What's your name?").startswith("I'm Bruno, the chef of a tiny restaurant.")
    assert "my knives" in reply(BRUNO, "What do you do?")
    assert "made me up" in reply(ADA, "Are you a robot?")


def test_the_script_turns_around_what_was_said() -> None:
    assert "your garden" in reply(ADA, "I love my garden")
    assert "Peter" in reply(ADA, "Hello, my name is Peter.")


@given(st.lists(st.text(max_size=80), min_size=1, max_size=8))
def test_the_script_always_has_an_answer(said: list[str]) -> None:
    answer = reply(ADA, *said)
    assert answer.strip()
    assert len(answer) < 600


def test_a_chat_model_is_asked_with_the_parties_in_turn() -> None:
    lines = [
        Line(Party.CHARACTER, "Hello!"),
        Line(Party.USER, "Hi."),
        Line(Party.USER, "Are you there?"),
        Line(Party.CHARACTER, "Yes."),
    ]
    asked = messages(ADA, lines, CheckIn())
    assert [it["role"] for it in asked] == ["system", "assistant", "user", "assistant", "user"]
    assert asked[2]["content"] == "Hi.\nAre you there?"
    assert ADA.instructions in asked[0]["content"]
