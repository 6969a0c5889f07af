"""The local dialogue in virtual time, its parts of known results: one conversation's story."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from services.llm_bridge.persona import Persona
from services.llm_bridge.speech_model import CheckIn, Cue, Line, Party
from services.runtime.metrics import BridgeMetrics
from talkingmachines.errors import NoCapacity, TalkingMachinesError, Unavailable
from talkingmachines.v1 import avatar_pb2
from tests.fakes.speech_parts import Echo, Model, Recogniser, text_of
from tests.llm_bridge.call import Call, conversation, persona, silence, voice
from tests.virtual_time import run_virtual

USER, CHARACTER = avatar_pb2.PARTY_USER, avatar_pb2.PARTY_CHARACTER


def held(
    story: Callable[[Call, Model], Any],
    who: Persona,
    *,
    history: tuple[Line, ...] = (),
    **parts: Any,
) -> tuple[Call, Model]:
    """A conversation that goes as the story tells."""
    models: list[Model] = []

    @asynccontextmanager
    async def make(metrics: BridgeMetrics) -> AsyncIterator[Model]:
        models.append(Model(metrics, **parts))
        yield models[0]

    async def main() -> Call:
        async with conversation(make, who, history=history) as call:
            await story(call, models[0])
        return call

    return run_virtual(main()), models[0]


async def say(call: Call, seconds: float, text: str, model: Model) -> None:
    """Speak in real time."""
    model.recogniser.texts.append(text)
    await hear(call, voice(seconds) + silence(1.2))


async def hear(call: Call, sound: bytes) -> None:
    for at in range(0, len(sound), 640):
        call.say(sound[at : at + 640])
        await asyncio.sleep(0.02)


def test_recognition_is_done_while_the_pause_is_still_waited_for() -> None:
    """The answer's first sound: patience, and next to nothing besides."""

    async def story(call: Call, model: Model) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        model.recogniser.texts.append("How are you?")
        speaking = asyncio.create_task(hear(call, voice(1.0) + silence(2.0)))
        await call.until(lambda call: call.told("speech"))
        waited.append(clock() - begun - 1.0)
        await speaking

    waited: list[float] = []
    _, model = held(story, persona(end_silence=0.6), recogniser=Recogniser(seconds=0.3))
    assert waited[0] == pytest.approx(0.6 + 0.03, abs=0.06)
    assert len(model.recogniser.sounds) == 1


def test_typing_over_an_answer_ends_it_with_what_was_heard() -> None:
    async def story(call: Call, model: Model) -> None:
        await say(call, 0.5, "One two three four five six seven eight", model)
        await call.ended(1)
        call.send(text=avatar_pb2.Text(text="Stop"))
        await call.until(lambda call: call.told("interrupted"))
        call.played(1, model.sample_rate // 2)
        await call.until(lambda call: call.told("turn_started")[-1].turn == 3)

    call, model = held(story, persona())
    (cut,) = call.finals(CHARACTER)
    assert (cut.text, cut.interrupted) == ("One two", True)
    assert [line.text for line in model.writer.seen[-1]] == [  # type: ignore[attr-defined]
        "One two three four five six seven eight",
        "One two",
        "Stop",
    ]


def test_who_goes_on_after_a_pause_is_understood_as_a_whole() -> None:
    async def story(call: Call, model: Model) -> None:
        model.recogniser.texts += ["I was", "I was going to say"]
        await hear(call, voice(0.5) + silence(0.4) + voice(0.5) + silence(1.2))
        await call.until(lambda call: call.finals(USER))

    call, model = held(story, persona(end_silence=0.6))
    assert [it.text for it in call.finals(USER)] == ["I was going to say"]
    first, second = model.recogniser.sounds
    assert second.startswith(first[:20_000])


def test_speech_and_words_belong_together() -> None:
    async def story(call: Call, model: Model) -> None:
        model.writer.answers.append("Good to see you, my friend. Sit down, and tell me all of it.")  # type: ignore[attr-defined]
        await say(call, 0.5, "Hello", model)
        await call.ended(1)
        call.play_all(1)
        await call.until(lambda call: call.finals(CHARACTER))

    call, _ = held(story, persona())
    assert text_of(call.speech(1)).split() == call.finals(CHARACTER)[0].text.split()
    for words in call.told("transcript"):
        if words.party == CHARACTER and not words.final:
            spoken = call.speech(1)[2 * words.first_sample : 2 * words.end_sample]
            assert text_of(spoken).strip() == words.text.strip()


def test_the_character_remembers_what_was_heard_of_it() -> None:
    async def story(call: Call, model: Model) -> None:
        model.writer.answers.append("One two three four five six seven eight nine ten")  # type: ignore[attr-defined]
        await say(call, 0.5, "Count", model)
        await call.ended(1)
        call.played(1, call.spoken(1) // 3)
        call.send(interrupt=avatar_pb2.Interrupt())
        await say(call, 0.5, "Where were you?", model)
        await call.ended(3)

    call, model = held(story, persona())
    assert isinstance(model.writer, Echo)
    said = [line.text for line in model.writer.seen[1]]
    assert said == ["Count", "One two three", "Where were you?"]
    assert call.finals(CHARACTER)[0].text == "One two three"


def test_history_is_known_and_not_greeted() -> None:
    past = (Line(Party.USER, "I am Bob"), Line(Party.CHARACTER, "Hello Bob"))

    async def story(call: Call, model: Model) -> None:
        await say(call, 0.5, "Who am I", model)
        await call.ended(1)

    call, model = held(story, persona(greeting="Welcome!"), history=past)
    assert isinstance(model.writer, Echo)
    assert [line.text for line in model.writer.seen[0]] == ["I am Bob", "Hello Bob", "Who am I"]
    assert len(call.told("turn_started")) == 1


def test_after_long_silence_the_character_says_something() -> None:
    cues: list[Cue] = []

    @dataclass
    class Writer:
        name: str = "noting"

        async def write(
            self, persona: Persona, history: Sequence[Line], cue: Cue
        ) -> AsyncIterator[str]:
            cues.append(cue)
            yield "Are you there?"

    async def story(call: Call, _: Model) -> None:
        clock = asyncio.get_running_loop().time
        await call.ended(1)
        call.play_all(1)
        since = clock()
        await call.ended(2)
        assert clock() - since == pytest.approx(8.0, abs=0.1)

    held(story, persona(greeting="Hello!", silence_timeout=8.0), writer=Writer())
    assert cues == [CheckIn()]


@pytest.mark.parametrize(
    ("error", "notice"),
    [
        (Unavailable("gone", retry_after=1), avatar_pb2.NOTICE_KIND_MODEL_UNAVAILABLE),
        (NoCapacity("words", retry_after=3), avatar_pb2.NOTICE_KIND_MODEL_RATE_LIMITED),
    ],
)
def test_a_writer_that_fails_is_told_of_and_asked_again(
    error: TalkingMachinesError, notice: avatar_pb2.NoticeKind.ValueType
) -> None:
    @dataclass
    class Writer:
        name: str = "failing"
        left: int = 1

        async def write(
            self, persona: Persona, history: Sequence[Line], cue: Cue
        ) -> AsyncIterator[str]:
            self.left -= 1
            if self.left >= 0:
                raise error
            yield "Here I am."

    async def story(call: Call, model: Model) -> None:
        await say(call, 0.5, "Hello", model)
        await call.ended(1)

    call, _ = held(story, persona(), writer=Writer())
    assert call.notices() == [notice, avatar_pb2.NOTICE_KIND_MODEL_AVAILABLE]
    assert call.metric("tm_turns_total", outcome="failed") == 1


def test_a_fault_of_ours_ends_the_conversation_and_says_so() -> None:
    class Broken(Recogniser):
        async def text(self, sound: bytes) -> str:
            raise ZeroDivisionError

    async def story(call: Call, _: Model) -> None:
        await hear(call, voice(0.5) + silence(1.2))
        await asyncio.sleep(1)

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        held(story, persona(), recogniser=Broken())
