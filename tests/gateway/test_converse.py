"""CONVERSE in virtual time: a real session, a real bridge, ears and voice of known results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.gateway.converse import Converse
from services.gateway.session import Session
from services.llm_bridge.persona import Patience
from services.llm_bridge.servicer import LlmBridgeServicer
from services.runtime.drain import Drain
from services.runtime.metrics import BridgeMetrics
from services.runtime.token import FleetToken
from talkingmachines.errors import BadInput, Unavailable
from talkingmachines.v1 import avatar_pb2, llm_bridge_pb2, media_pb2, storage_pb2
from tests.fakes.replica import LocalCall
from tests.fakes.speech_parts import Echo, Model
from tests.gateway.stage import SPEC, Client, Stage, stage
from tests.virtual_time import run_virtual

USER, CHARACTER = avatar_pb2.PARTY_USER, avatar_pb2.PARTY_CHARACTER
USER_RATE = 16_000
DOWN = avatar_pb2.NOTICE_KIND_MODEL_UNAVAILABLE
UP = avatar_pb2.NOTICE_KIND_MODEL_AVAILABLE


@dataclass
class Bridge:
    """Bridges within the process, one after the other; the stub of their service."""

    refusal: Unavailable | None = None
    model: Model = field(init=False)
    drain: Drain = field(init=False)
    calls: list[LocalCall[llm_bridge_pb2.ConverseResponse]] = field(default_factory=list)
    opened: list[llm_bridge_pb2.ConverseOpen] = field(default_factory=list)
    asks: list[avatar_pb2.ToolCall] = field(default_factory=list)  # once opened; the model has none

    def __post_init__(self) -> None:
        self.metrics = BridgeMetrics(CollectorRegistry())
        self.model = Model(self.metrics)
        self.renew()

    def renew(self) -> None:
        """As after a restart."""
        self.drain = Drain(20.0)
        patience = Patience(end_silence=0.4, silence_timeout=0)
        self._servicer = LlmBridgeServicer(
            self.model, patience, self.drain, self.metrics, token=FleetToken(None), most=4
        )

    def Converse(self, requests: AsyncIterator[Any]) -> LocalCall[Any]:
        async def noted() -> AsyncIterator[Any]:
            async for request in requests:
                if request.HasField("open"):
                    self.opened.append(request.open)
                yield request

        async def asking(replies: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async with aclosing(cast(AsyncGenerator[Any, None], replies)):
                async for response in replies:
                    yield response
                    while response.HasField("opened") and self.asks:
                        yield llm_bridge_pb2.ConverseResponse(tool_call=self.asks.pop(0))

        async def refused() -> AsyncIterator[Any]:
            assert self.refusal is not None
            raise self.refusal
            yield

        if self.refusal is not None:
            return LocalCall(refused())
        call = LocalCall(asking(self._servicer.Converse(noted(), cast(Any, None))))
        self.calls.append(call)
        return call


@dataclass
class User:
    """A client that talks into a microphone in real time, and plays what it gets."""

    on: Stage
    bridge: Bridge
    reports: bool = True
    _speech: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._task = asyncio.create_task(self._talk())

    def speak(self, seconds: float, text: str = "") -> None:
        noise = np.random.default_rng(1).integers(-8000, 8000, int(seconds * USER_RATE))
        self._speech += noise.astype("<i2").tobytes()
        if text:
            self.bridge.model.recogniser.texts.append(text)

    async def hears(self, true: Callable[[Client], Any], *, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not true(self.on.client):  # noqa: ASYNC110  virtual time costs nothing
                await asyncio.sleep(0.01)

    def stop(self) -> None:
        self._task.cancel()
        self.on.hang_up()

    async def _talk(self) -> None:
        size = USER_RATE // 50 * 2
        while True:
            piece = bytes(self._speech[:size]).ljust(size, b"\0")
            del self._speech[:size]
            self.on.send(audio=media_pb2.Pcm(samples=piece, sample_rate=USER_RATE))
            await asyncio.sleep(0.02)
            client = self.on.client
            if self.reports and client.sounds:
                frame, sample = client.frames[-1].frame + 1, client.sounds[-1].end_sample
                position = avatar_pb2.PlaybackPosition(frame=frame, sample=sample)
                self.on.send(playback=position)


@asynccontextmanager
async def call(
    bridge: Bridge | None = None, *, reports: bool = True, **persona: Any
) -> AsyncIterator[User]:
    bridge = bridge or Bridge()

    def source(session: Session) -> Converse:
        return Converse(
            session,
            cast(Any, bridge),
            session_id="s",
            persona=avatar_pb2.Persona(**persona),
            spec=SPEC,
            said=storage_pb2.Conversation(),
        )

    async with stage(source=source) as on:
        user = User(on, bridge, reports)
        try:
            yield user
        finally:
            user.stop()


def spoken(client: Client, turn: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    sound = b"".join(pcm.samples for pcm in client.sounds if pcm.turn == turn)
    return np.frombuffer(sound, "<i2")


def speaks(turn: int) -> Callable[[Client], bool]:
    return lambda client: bool(spoken(client, turn).any())


def finals(client: Client, party: avatar_pb2.Party.ValueType) -> list[avatar_pb2.Transcript]:
    return [it for it in client.told("transcript") if it.final and it.party == party]


def notices(client: Client) -> list[avatar_pb2.NoticeKind.ValueType]:
    return [notice.kind for notice in client.told("notice")]


def test_what_the_user_says_is_answered() -> None:
    async def main() -> Client:
        async with call() as user:
            await user.on.frame(10)
            user.speak(1.0, "Hello there my friend")
            await user.hears(lambda client: finals(client, CHARACTER))
        return user.on.client

    client = run_virtual(main())
    assert [frame.frame for frame in client.frames] == list(range(len(client.frames)))
    (question,) = finals(client, USER)
    (answer,) = finals(client, CHARACTER)
    assert question.text == answer.text == "Hello there my friend"
    assert question.turn == answer.turn == 1
    (started,), (ended,) = client.told("turn_started"), client.told("turn_ended")
    assert answer.first_sample == started.first_sample
    assert answer.end_sample == pytest.approx(ended.end_sample, abs=80)
    begin = started.first_sample / SPEC.sample_rate
    heard = (question.first_sample / SPEC.sample_rate, question.end_sample / SPEC.sample_rate)
    assert heard[1] - heard[0] == pytest.approx(1.0, abs=0.1)
    assert 0.4 < begin - heard[1] < 2.0  # after the user, and not long after
    pieces = [it for it in client.told("transcript") if it.party == CHARACTER and not it.final]
    assert "".join(it.text for it in pieces).strip() == answer.text
    assert [it.first_sample for it in pieces] == sorted(it.first_sample for it in pieces)
    assert [it.speaking for it in client.told("user_speech")] == [True, False]
    assert question.utterance == 1
    assert {it.utterance for it in (*pieces, answer)} == {2}


def test_an_answer_much_longer_than_what_may_wait_is_said_whole() -> None:
    words = " ".join(f"word{number}" for number in range(150))  # a minute of speech

    async def main() -> Client:
        async with call() as user:
            user.bridge.model.writer.answers.append(words)  # type: ignore[attr-defined]
            user.speak(1.0, "Go on")
            await user.hears(lambda client: finals(client, CHARACTER), seconds=120)
        return user.on.client

    client = run_virtual(main())
    (answer,) = finals(client, CHARACTER)
    assert answer.text == words
    assert len(client.told("turn_ended")) == 1


@pytest.mark.parametrize("reports", [True, False])
def test_talking_over_an_answer_stops_it_and_the_model_knows_what_was_heard(reports: bool) -> None:
    async def main() -> tuple[Client, Bridge]:
        async with call(reports=reports) as user:
            echo = cast(Echo, user.bridge.model.writer)
            echo.answers.append("one two three four five six seven eight nine ten eleven twelve")
            user.speak(0.6, "Count please")
            await user.hears(speaks(1))
            await asyncio.sleep(0.8)
            user.speak(1.5, "That is enough")
            await user.hears(speaks(3))
        return user.on.client, user.bridge

    client, bridge = run_virtual(main())
    (cut,) = client.told("interrupted")
    assert cut.turn == 1
    after = [pcm for pcm in client.sounds if pcm.turn == 2]
    assert after[0].first_sample == cut.sample
    assert not any(spoken(client, 2))
    (final,) = [it for it in finals(client, CHARACTER) if it.interrupted]
    assert final.turn == 1
    assert final.end_sample == cut.sample
    heard = (cut.sample - client.told("turn_started")[0].first_sample) / SPEC.sample_rate
    # 20 characters a second, cut at whole words.
    assert len(final.text) == pytest.approx(20 * heard, abs=6)
    told = cast(Echo, bridge.model.writer).seen[1]
    assert [line.text for line in told] == ["Count please", final.text, "That is enough"]
    assert [frame.frame for frame in client.frames][-1] > cut.frame


def test_silence_comes_soon_after_the_least_interruption() -> None:
    """Half a second of voice, and at most 0.3 s until nothing more is sent."""

    async def main() -> float:
        async with call() as user:
            echo = cast(Echo, user.bridge.model.writer)
            echo.answers.append("one two three four five six seven eight nine ten eleven twelve")
            user.speak(0.6, "Count please")
            await user.hears(speaks(1))
            await asyncio.sleep(0.8)
            since = asyncio.get_running_loop().time()
            user.speak(1.5, "That is enough")
            await user.hears(lambda client: client.told("interrupted"))
            return asyncio.get_running_loop().time() - since

    assert 0.5 < run_virtual(main()) < 0.8


def test_a_cough_interrupts_nothing() -> None:
    async def main() -> Client:
        async with call() as user:
            user.speak(0.6, "Tell me something that is rather long")
            await user.hears(speaks(1))
            user.speak(0.2)
            await user.hears(lambda client: finals(client, CHARACTER))
        return user.on.client

    client = run_virtual(main())
    assert client.told("interrupted") == []
    assert len(finals(client, CHARACTER)) == 1


def test_noise_without_words_lets_the_character_go_on() -> None:
    async def main() -> Client:
        async with call() as user:
            user.speak(0.6, "One two three four five six seven eight nine")
            await user.hears(speaks(1))
            await asyncio.sleep(0.3)
            user.speak(0.7)  # long enough to interrupt; nothing is recognised in it
            await user.hears(lambda client: len(client.told("turn_ended")) == 1)
            await user.hears(lambda client: len(finals(client, CHARACTER)) == 2)
        return user.on.client

    client = run_virtual(main())
    assert notices(client) == [avatar_pb2.NOTICE_KIND_FALSE_INTERRUPTION]
    assert client.told("notice")[0].turn == 1
    first, second = finals(client, CHARACTER)
    assert (first.interrupted, second.interrupted) == (True, False)
    assert [it.turn for it in client.told("turn_started")] == [1, 3]
    assert second.text.endswith("nine")


def test_the_client_s_interrupt_is_obeyed_at_once() -> None:
    async def main() -> tuple[Client, Bridge]:
        async with call() as user:
            user.speak(0.6, "One two three four five six seven")
            await user.hears(speaks(1))
            await asyncio.sleep(0.5)
            user.on.send(interrupt=avatar_pb2.Interrupt())
            await asyncio.sleep(0.02)
            assert user.on.client.told("interrupted")
            user.speak(0.6, "And now")
            await user.hears(speaks(3))
        return user.on.client, user.bridge

    client, bridge = run_virtual(main())
    (final,) = [it for it in finals(client, CHARACTER) if it.interrupted]
    assert 0 < len(final.text) < len("One two three four five six seven")
    assert cast(Echo, bridge.model.writer).seen[1][1].text == final.text


def test_a_greeting_can_be_uninterruptible() -> None:
    async def main() -> Client:
        manners = avatar_pb2.TurnTaking(uninterruptible_greeting=True)
        async with call(greeting="Welcome to this call, whoever you are", turn_taking=manners) as u:
            await u.hears(speaks(1))
            u.on.send(interrupt=avatar_pb2.Interrupt())
            u.speak(1.2, "Hey hey hey")
            await u.hears(lambda client: len(finals(client, CHARACTER)) == 2)
        return u.on.client

    client = run_virtual(main())
    assert client.told("interrupted") == []
    assert [it.text for it in finals(client, CHARACTER)] == [
        "Welcome to this call, whoever you are",
        "Hey hey hey",
    ]


def test_typed_words_and_push_to_talk() -> None:
    async def main() -> Client:
        manners = avatar_pb2.TurnTaking(detection=avatar_pb2.TURN_DETECTION_MANUAL)
        async with call(turn_taking=manners) as user:
            user.on.send(text=avatar_pb2.Text(text="Written words"))
            await user.hears(lambda client: len(finals(client, CHARACTER)) == 1)
            user.speak(1.0, "Spoken words")
            await asyncio.sleep(3)
            assert len(finals(user.on.client, CHARACTER)) == 1  # the button is still held
            user.on.send(end_of_speech=avatar_pb2.EndOfSpeech())
            await user.hears(lambda client: len(finals(client, CHARACTER)) == 2)
        return user.on.client

    texts = [it.text for it in finals(run_virtual(main()), CHARACTER)]
    assert texts == ["Written words", "Spoken words"]


def test_a_bridge_that_is_away_is_told_and_the_conversation_goes_on_with_its_history() -> None:
    async def main() -> tuple[Client, Bridge]:
        async with call() as user:
            user.speak(0.6, "Remember me")
            await user.hears(lambda client: finals(client, CHARACTER))
            user.bridge.refusal = Unavailable("nobody is there", retry_after=1)
            user.bridge.calls[-1].cancel()
            await user.hears(lambda client: notices(client) == [DOWN])
            await asyncio.sleep(5)
            user.bridge.refusal = None
            await user.hears(lambda client: notices(client) == [DOWN, UP])
            user.speak(0.6, "Who am I")
            await user.hears(lambda client: len(finals(client, CHARACTER)) == 2)
        return user.on.client, user.bridge

    client, bridge = run_virtual(main())
    gaps = np.diff(client.times)
    assert gaps.max() < 0.05  # the picture never stood still
    past = [it.transcript for it in bridge.opened[-1].history]
    assert [(it.party, it.text) for it in past] == [
        (USER, "Remember me"),
        (CHARACTER, "Remember me"),
    ]
    assert [it.turn for it in client.told("turn_started")] == [1, 2]
    begins = [it for it in client.told("user_speech") if it.speaking]
    assert begins[1].sample > begins[0].sample + 5 * USER_RATE


@pytest.mark.parametrize("away", [False, True], ids=["before it is lost", "while it is away"])
def test_the_next_bridge_knows_what_was_called_and_what_came_of_it(away: bool) -> None:
    asked = avatar_pb2.ToolCall(call_id="a", turn=1, name="weather", arguments_json="{}")
    result = avatar_pb2.ToolResult(call_id="a", result_json='"rain"')

    async def main() -> tuple[Client, Bridge]:
        async with call(Bridge(asks=[asked])) as user:
            await user.hears(lambda client: client.told("tool_call"))
            user.bridge.refusal = Unavailable("nobody is there", retry_after=1)
            if away:
                user.bridge.calls[-1].cancel()
                await user.hears(lambda client: notices(client) == [DOWN])
            for answer in (result, result, avatar_pb2.ToolResult(call_id="nonsense")):
                user.on.send(tool_result=answer)
            await asyncio.sleep(0.1)
            user.bridge.calls[-1].cancel()
            await user.hears(lambda client: notices(client) == [DOWN])
            user.bridge.refusal = None
            await user.hears(lambda client: notices(client) == [DOWN, UP])
        return user.on.client, user.bridge

    client, bridge = run_virtual(main())
    assert client.told("tool_call") == [asked]
    assert list(bridge.opened[-1].history) == [
        llm_bridge_pb2.PastEvent(tool_call=asked),
        llm_bridge_pb2.PastEvent(tool_result=result),
    ]


def test_what_a_lost_bridge_owes_is_answered_by_the_next() -> None:
    async def main() -> tuple[Client, Bridge]:
        async with call() as user:
            user.speak(0.6, "Tell me")
            await user.hears(lambda client: finals(client, USER))
            user.bridge.calls[-1].cancel()
            await user.hears(lambda client: finals(client, CHARACTER))
        return user.on.client, user.bridge

    client, bridge = run_virtual(main())
    assert len(bridge.opened) == 2
    assert [it.text for it in finals(client, CHARACTER)] == ["Tell me"]


def test_a_bridge_lost_in_the_middle_of_an_answer_lets_the_rest_be_said() -> None:
    async def main() -> tuple[Client, Bridge]:
        async with call() as user:
            user.speak(0.6, "One two three four five six seven")
            await user.hears(speaks(1))
            user.bridge.calls[-1].cancel()
            await user.hears(lambda client: finals(client, CHARACTER))
        return user.on.client, user.bridge

    client, bridge = run_virtual(main())
    (answer,) = finals(client, CHARACTER)
    assert (answer.text, answer.interrupted) == ("One two three four five six seven", False)
    assert [it.transcript.text for it in bridge.opened[-1].history] == [answer.text] * 2
    assert len(client.told("turn_started")) == 1  # nobody answers twice
    assert notices(client) == [DOWN, UP]
    said = spoken(client, 1)
    assert np.count_nonzero(said) > SPEC.sample_rate  # more than had been played then


def test_a_bridge_that_drains_is_left_between_answers_unnoticed() -> None:
    async def main() -> tuple[Client, Bridge]:
        async with call() as user:
            user.speak(0.6, "One two three four five six seven")
            await user.hears(speaks(1))
            draining = user.bridge.drain
            user.bridge.renew()
            draining.start()
            await asyncio.sleep(0.5)
            assert len(user.bridge.opened) == 1  # not while it speaks
            await user.hears(lambda client: client.told("turn_ended"))
            user.speak(0.6, "Still there")
            await user.hears(lambda client: len(finals(client, CHARACTER)) == 2)
            await user.hears(lambda _: len(user.bridge.opened) == 2)  # with both sides silent
            user.speak(0.6, "And now")
            await user.hears(lambda client: len(finals(client, CHARACTER)) == 3)
        return user.on.client, user.bridge

    client, bridge = run_virtual(main())
    assert notices(client) == []
    assert len(bridge.opened) == 2
    assert [it.transcript.text for it in bridge.opened[1].history[2:]] == ["Still there"] * 2


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"audio": {"samples": b"\0\0\0", "sample_rate": 16_000}}, "audio.samples"),
        ({"audio": {"sample_rate": 8_000}}, "audio.sample_rate"),
        ({"audio": {"sample_rate": 16_000, "turn": 3}}, "audio.turn, chunk and speaker"),
        ({"text": {"text": ""}}, "text.text"),
        ({"tool_result": {"result_json": "x" * 100_001}}, "tool_result.result_json"),
    ],
    ids=["odd bytes", "another rate", "a turn", "no text", "a long result"],
)
def test_what_cannot_be_used_is_refused_by_name(message: dict[str, Any], field: str) -> None:
    async def main() -> None:
        async with call() as user:
            await user.on.frame(5)
            user.on.send(**message)
            await asyncio.sleep(1)

    with pytest.RaisesGroup(BadInput, flatten_subgroups=True) as raised:
        run_virtual(main())
    (error,) = raised.value.exceptions
    assert cast(BadInput, error).field == field
