"""The Realtime adapter against a strict server of the protocol, over real WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from services.llm_bridge.persona import Persona, Tool
from services.llm_bridge.realtime.model import realtime_model
from services.llm_bridge.settings import Realtime
from services.llm_bridge.speech_model import Asked, Line, Party, Past, Told
from talkingmachines.v1 import avatar_pb2
from tests.fakes.realtime_server import RATE, RealtimeServer, Script, realtime_server
from tests.llm_bridge.call import Call, conversation, persona, silence, voice

USER, CHARACTER = avatar_pb2.PARTY_USER, avatar_pb2.PARTY_CHARACTER
DOWN = avatar_pb2.NOTICE_KIND_MODEL_UNAVAILABLE
UP = avatar_pb2.NOTICE_KIND_MODEL_AVAILABLE
LIMITED = avatar_pb2.NOTICE_KIND_MODEL_RATE_LIMITED


@asynccontextmanager
async def talk(
    server: RealtimeServer,
    who: Persona | None = None,
    *,
    history: tuple[Past, ...] = (),
    **settings: Any,
) -> AsyncIterator[Call]:
    settings.setdefault("key", SecretStr("secret"))
    settings.setdefault("last_backoff", 0.3)
    model = partial(realtime_model, Realtime(url=server.url, **settings))
    async with conversation(model, who or persona(), history=history) as call:
        yield call


@pytest.mark.parametrize("beta", [False, True], ids=["released", "beta"])
async def test_an_utterance_is_answered_in_speech_and_words(beta: bool) -> None:
    async with realtime_server(beta=beta) as server:
        server.transcripts.append("How are you?")
        server.scripts.append(Script("I am well, thank you.", seconds=0.9, level=123))
        who = persona(instructions="You are Ada.", voice="sage", language="en-GB")
        async with talk(server, who) as call:
            call.speak()
            await call.ended(1)
            call.play_all(1)
            await call.until(lambda call: call.finals(CHARACTER))
        assert server.errors == []
    assert call.speech(1) == np.full(round(0.9 * RATE), 123, "<i2").tobytes()
    assert [it.text for it in call.finals(USER)] == ["How are you?"]
    (final,) = call.finals(CHARACTER)
    assert (final.text, final.turn, final.interrupted) == ("I am well, thank you.", 1, False)
    assert final.end_sample == call.spoken(1)
    begins, ends = call.told("user_speech")
    assert (begins.speaking, ends.speaking) == (True, False)
    assert begins.sample == pytest.approx(1600, abs=400)  # 0.1 s of silence at 16 kHz
    assert ends.sample == pytest.approx(6400, abs=400)
    (update,) = server.got("session.update")
    assert update["session"]["instructions"] == "You are Ada."
    assert "sage" in str(update["session"])
    assert "'language': 'en'" in str(update["session"])


async def test_a_greeting_comes_first_and_only_in_a_new_call() -> None:
    async with realtime_server() as server:
        async with talk(server, persona(greeting="Welcome aboard!")) as call:
            await call.ended(1)
        (create,) = server.got("response.create")
        assert "Welcome aboard!" in create["response"]["instructions"]
        said = (Line(Party.USER, "Hi"), Line(Party.CHARACTER, "Hello"))
        async with talk(server, persona(greeting="Welcome aboard!"), history=said):
            await server.until(lambda: len(server.sessions) == 2 and len(server.session.items) == 2)
        assert len(server.got("response.create")) == 1
        assert server.errors == []


@pytest.mark.parametrize("made", ["all", "half"])
async def test_an_interruption_cuts_what_the_model_believes_to_what_was_heard(made: str) -> None:
    """Whether the server had made all of the answer, or is still at it."""
    pause = 0.0 if made == "all" else 0.15
    async with realtime_server(cancel_seconds=0.1) as server:
        server.scripts += [Script("one two three four five six seven eight", 2.0, pause=pause)]
        server.scripts += [Script("Yes?", 0.4, level=77)]
        server.transcripts += ["Count.", "Stop it!"]
        async with talk(server, persona(min_interruption=0.1)) as call:
            call.speak()
            await call.until(lambda call: call.spoken(1) >= RATE // 2)
            call.say(voice(0.4))
            await call.until(lambda call: call.told("interrupted"))
            call.played(1, RATE // 4)  # a quarter of a second was heard
            call.say(silence(0.4))
            await call.ended(3)
        (cut,) = server.got("conversation.item.truncate")
        assert cut["audio_end_ms"] == 250
        kinds = [event["type"] for event in server.received]
        if made == "half":
            assert kinds.index("response.cancel") < kinds.index("conversation.item.truncate")
        assert server.errors == []  # the second answer waited for the end of the first
    assert [it.turn for it in call.told("interrupted")] == [1]
    assert [it.turn for it in call.told("turn_started")] == [1, 3]
    assert set(np.frombuffer(call.speech(3), "<i2")) == {77}
    final = next(it for it in call.finals(CHARACTER) if it.interrupted)
    assert "one two three four five six seven eight".startswith(final.text)
    assert len(final.text) < 20
    assert call.metric("tm_interruptions_total", kind="real") == 1


async def test_a_noise_interrupts_nothing_for_good() -> None:
    """Voice according to the server, too short in the end: the character goes on."""
    async with realtime_server() as server:
        server.scripts.append(Script("one two three four", 1.0, level=55))
        async with talk(server, persona(min_interruption=0.15)) as call:
            call.speak()
            await call.ended(1)
            call.say(voice(0.04))
            await call.until(lambda call: call.told("interrupted"))
            call.played(1, RATE // 2)
            call.say(silence(0.4))
            await call.ended(3)
        assert len(server.got("response.create")) == 1
        assert server.got("response.cancel") == server.got("conversation.item.truncate") == []
    assert call.notices() == [avatar_pb2.NOTICE_KIND_FALSE_INTERRUPTION]
    assert RATE // 2 <= call.spoken(3) < RATE * 3 // 4  # the rest, from a little before
    assert call.metric("tm_interruptions_total", kind="false") == 1


async def test_push_to_talk_ends_turns_by_hand() -> None:
    async with realtime_server() as server:
        server.transcripts.append("Over.")
        async with talk(server, persona(push_to_talk=True)) as call:
            call.send(end_of_speech=avatar_pb2.EndOfSpeech())  # nothing was said
            call.say(voice(0.3) + silence(0.5) + voice(0.3))
            call.send(end_of_speech=avatar_pb2.EndOfSpeech())
            await call.ended(1)
        (update,) = server.got("session.update")
        assert update["session"]["audio"]["input"]["turn_detection"] is None
        assert len(server.got("input_audio_buffer.commit")) == 1
        assert server.errors == []


async def test_typed_words_are_answered() -> None:
    async with realtime_server() as server:
        async with talk(server) as call:
            await server.until(lambda: server.got("session.update"))
            call.send(text=avatar_pb2.Text(text="Hello in writing"))
            await call.ended(1)
        assert server.errors == []
        assert [it["content"][0]["text"] for it in server.session.items.values() if "content" in it]


async def test_tools_are_passed_through_both_ways() -> None:
    tool = Tool("weather", "Says how it is outside.", '{"type": "object"}')
    async with realtime_server() as server:
        server.scripts.append(Script(tool=("weather", '{"city": "Rome"}')))
        server.scripts.append(Script("It is sunny in Rome.", 0.5))
        async with talk(server, persona(tools=(tool,))) as call:
            call.speak()
            await call.until(lambda call: call.told("tool_call"))
            (asked,) = call.told("tool_call")
            result = avatar_pb2.ToolResult(call_id=asked.call_id, result_json='{"sky": "clear"}')
            call.send(tool_result=result)
            await call.ended(1)
        outputs = [it for it in server.session.items.values() if "output" in it]
        assert server.errors == []
    assert (asked.name, asked.arguments_json, asked.turn) == ("weather", '{"city": "Rome"}', 1)
    assert [(it["call_id"], it["output"]) for it in outputs] == [
        (asked.call_id, '{"sky": "clear"}')
    ]


async def test_a_new_connection_knows_what_was_called_and_what_came_of_it() -> None:
    """Also of calls that another bridge passed on, and whose result comes here."""
    past = (
        Line(Party.USER, "How is it outside?"),
        Asked("a", "weather", "{}"),
        Told("lost", "1"),  # its call is no longer remembered
        Told("a", '"rain"'),
        Asked("b", "clock", "{}"),
    )
    async with realtime_server() as server:
        async with talk(server, history=past) as call:
            await server.until(lambda: server.sessions and len(server.session.items) == 4)
            for call_id in ("b", "b", "nonsense"):
                result = avatar_pb2.ToolResult(call_id=call_id, result_json='"noon"')
                call.send(tool_result=result)
            await server.until(lambda: len(server.session.items) == 5)
            await server.drop()
            await server.until(lambda: len(server.sessions) == 2 and len(server.session.items) == 5)
        told = [
            (it["type"], it.get("call_id"), it.get("output"))
            for it in server.session.items.values()
        ]
        assert server.errors == []
    assert told == [
        ("message", None, None),
        ("function_call", "a", None),
        ("function_call_output", "a", '"rain"'),
        ("function_call", "b", None),
        ("function_call_output", "b", '"noon"'),
    ]


async def test_a_lost_connection_is_made_again_with_what_was_said() -> None:
    async with realtime_server() as server:
        server.transcripts += ["I am Bob.", "Who am I?"]
        server.scripts += [Script("Hello Bob.", 0.4), Script("You are Bob.", 0.4)]
        async with talk(server) as call:
            call.speak()
            await call.ended(1)
            call.play_all(1)
            await call.until(lambda call: call.finals(USER) and call.finals(CHARACTER))
            await server.drop()
            await server.until(lambda: len(server.sessions) == 2)
            call.speak()
            await call.ended(2)
        assert server.errors == []
        told = [
            it["content"][0]["text"] for it in server.session.items.values() if it.get("content")
        ]
    assert told == ["I am Bob.", "Hello Bob."]
    assert call.notices() == []  # nobody noticed
    assert call.metric("tm_provider_connects_total", outcome="ok") == 2
    assert call.told("user_speech")[2].sample > call.told("user_speech")[1].sample


async def test_an_old_connection_is_changed_while_nobody_speaks() -> None:
    async with realtime_server() as server:
        async with talk(server, renew_seconds=0.3) as call:
            await server.until(lambda: len(server.sessions) >= 2)
            call.speak()
            await call.ended(1)
        assert call.notices() == []


async def test_a_connection_lost_in_an_answer_fails_it_and_it_is_tried_again() -> None:
    async with realtime_server() as server:
        server.scripts += [Script(silent=True), Script("Here I am.", 0.4)]
        async with talk(server) as call:
            call.speak()
            await server.until(lambda: server.got("response.create"))
            await server.drop()
            await call.ended(1)
            call.play_all(1)
            await call.until(lambda call: call.finals(CHARACTER))
    assert call.notices() == [DOWN, UP]
    assert call.metric("tm_turns_total", outcome="failed") == 1


async def test_a_server_that_is_silent_is_left() -> None:
    async with realtime_server() as server:
        server.scripts += [Script(silent=True), Script("Here I am.", 0.4)]
        async with talk(server, answer_seconds=0.3) as call:
            call.speak()
            await call.ended(1)
        assert len(server.sessions) == 2


async def test_a_server_that_is_away_is_waited_for_and_the_client_told() -> None:
    async with realtime_server() as server:
        server.refuse = 503
        async with talk(server, persona(greeting="Hello!")) as call:
            await call.until(lambda call: call.notices() == [DOWN])
            server.refuse = 0
            await call.ended(1)  # the greeting was owed
    assert call.notices() == [DOWN, UP]
    assert call.metric("tm_provider_connects_total", outcome="failed") >= 2


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(401, DOWN, "refuses our key"), (429, LIMITED, "limit is reached")],
)
async def test_a_refused_connection_says_why(
    status: int, kind: avatar_pb2.NoticeKind.ValueType, words: str
) -> None:
    async with realtime_server() as server:
        server.refuse, server.refuse_headers = status, {"retry-after": "0.2"}
        async with talk(server) as call:
            await call.until(lambda call: call.notices())
            notice = call.told("notice")[0]
    assert notice.kind == kind
    assert words in notice.message


async def test_a_rate_limit_is_told_and_waited_for() -> None:
    error = {
        "type": "requests",
        "code": "rate_limit_exceeded",
        "message": "Rate limit reached. Please try again in 1.3s.",
    }
    async with realtime_server() as server:
        server.scripts += [Script(error=error), Script("At last.", 0.3)]
        async with talk(server) as call:
            clock = asyncio.get_running_loop().time
            call.speak()
            await call.until(lambda call: call.notices() == [LIMITED])
            since = clock()
            await call.ended(1)
            waited = clock() - since
            call.play_all(1)
            await call.until(lambda call: call.notices() == [LIMITED, UP])
    assert waited > 1.0


async def test_a_response_that_cannot_be_had_is_given_up_after_some_attempts() -> None:
    error = {"type": "server_error", "code": "oops", "message": "The server had an error."}
    async with realtime_server() as server:
        server.scripts += [Script(error=error)] * 3
        async with talk(server) as call:
            call.speak()
            await server.until(lambda: len(server.got("response.create")) == 3)
            await call.until(lambda call: call.metric("tm_turns_total", outcome="failed") == 3)
            call.speak()  # and the next is answered
            await call.ended(1)
    assert call.notices()[0] == DOWN
    assert "had an error" in call.told("notice")[0].message


async def test_an_interrupt_by_hand_silences_an_answer_not_begun() -> None:
    async with realtime_server() as server:
        server.scripts += [Script(silent=True), Script("Now.", 0.3)]
        async with talk(server) as call:
            call.speak()
            await server.until(lambda: server.got("response.create"))
            await asyncio.sleep(0.05)
            call.send(interrupt=avatar_pb2.Interrupt())
            await server.until(lambda: server.got("response.cancel"))
            call.speak()
            await call.ended(1)
        assert server.errors == []
