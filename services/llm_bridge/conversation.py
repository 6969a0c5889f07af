"""One conversation: what the gateway sends and what the model says, brought together in turns.

On the path: servicer → **conversation** → dialogue. Who speaks when is decided in `turns`; here it
is carried out. Speech leaves as fast as it is made; the gateway says what of it was heard, and
that is what the model is told it said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, assert_never

import structlog

from services.llm_bridge import speech_model as said
from services.llm_bridge.answer import AnswerSpeech, Words
from services.llm_bridge.persona import Persona
from services.llm_bridge.speech_model import Cue, Dialogue
from services.llm_bridge.turns import Action, Answer, FallSilent, GiveUp, GoOn, Turns
from services.runtime.metrics import BridgeMetrics, InterruptionKind, TurnOutcome
from talkingmachines import duration
from talkingmachines.errors import BadInput
from talkingmachines.fields import FieldPath
from talkingmachines.media import Pcm
from talkingmachines.v1 import avatar_pb2, llm_bridge_pb2, media_pb2

_log = structlog.stdlib.get_logger(__name__)

_PIECE_SECONDS = 0.2  # of speech in a message

Requests = AsyncIterator[llm_bridge_pb2.ConverseRequest]
Response = llm_bridge_pb2.ConverseResponse


class Conversation:
    """One user's conversation with one character.

    Args:
        dialogue: with the model.
        persona: whose turn-taking it is.
        rate: of the model's speech, Hz.
        next_turn: number of the next turn, at least 1.
        owed: what the character is to say by itself; None: it waits.
        tell: takes what the gateway is to get.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        persona: Persona,
        *,
        rate: int,
        next_turn: int,
        owed: Cue | None,
        tell: Callable[[Response], None],
        metrics: BridgeMetrics,
    ) -> None:
        self._dialogue = dialogue
        self._rate = rate
        self._next_turn = max(1, next_turn)
        self._tell = tell
        self._metrics = metrics
        self._clock = asyncio.get_running_loop().time
        self._turns = Turns(persona.manners, now=self._clock())
        self._owed = owed
        self._answers: dict[int, AnswerSpeech] = {}  # the newest one, once it was asked for
        self._user_rate = 0  # Hz, once known
        self._user_sample = 0  # next of the user's voice
        self._changed = asyncio.Event()
        self._in_trouble = False

    async def run(self, requests: Requests) -> None:
        """Hold the conversation until the gateway ends it.

        Raises:
            BadInput: what the gateway sent cannot be used; names the field.
        """
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(self._follow()), tasks.create_task(self._keep_time())]
            self._do(self._turns.begin(self._owed, self._clock()))
            async for request in requests:
                self._take(request)
                self._go_on()
            for task in beside:
                task.cancel()

    # ---- What the gateway sends ----

    def _take(self, request: llm_bridge_pb2.ConverseRequest) -> None:
        now = self._clock()
        match request.WhichOneof("message"):
            case "audio":
                self._hear(request.audio)
            case "end_of_speech":
                self._dialogue.end_of_speech()
            case "text":
                self._dialogue.read(request.text.text)
                self._do(self._turns.user_wrote(now))
            case "interrupt":
                self._do(self._turns.interrupted(now))
            case "playback":
                self._played(request.playback)
            case "tool_result":
                result = request.tool_result
                self._dialogue.tool_result(result.call_id, result.result_json, failed=result.failed)
            case other:
                raise BadInput(
                    other or "message", got="it", expected="open first and once, then the rest"
                )

    def _hear(self, message: media_pb2.Pcm) -> None:
        pcm = Pcm.from_proto(message, at="audio")
        with FieldPath("audio"):
            if self._user_rate not in (0, pcm.sample_rate):
                expected = f"{self._user_rate} Hz, as before"
                raise BadInput("sample_rate", got=f"{pcm.sample_rate} Hz", expected=expected)
        self._user_rate = pcm.sample_rate
        self._user_sample += len(pcm)
        self._dialogue.hear(pcm)

    def _played(self, playback: avatar_pb2.PlaybackPosition) -> None:
        for answer in list(self._answers.values()):  # what is reported may end one
            if playback.turn == answer.turn:
                answer.note_heard(playback.turn_samples)
                self._do(self._turns.reported(self._clock()))

    # ---- What the model says ----

    async def _follow(self) -> None:
        async for event in self._dialogue.events():
            self._hear_model(event)
            self._go_on()

    def _hear_model(self, event: said.Event) -> None:
        now, turns = self._clock(), self._turns
        match event:
            case said.UserStarted(at=at):
                self._user_speech(speaking=True, at=at)
                self._do(turns.user_started(now))
            case said.UserPaused():
                self._do(turns.user_paused(now))
            case said.UserStopped(at=at, voiced=voiced, text=text):
                self._user_speech(speaking=False, at=at)
                self._do(turns.user_stopped(now, voiced, text))
            case said.UserSaid():
                self._tell(Response(transcript=self._user_words(event)))
            case said.ModelDown(why=why):
                turns.model_down()
                self._trouble(avatar_pb2.NOTICE_KIND_MODEL_UNAVAILABLE, why)
            case said.ModelUp():
                self._recovered()
                self._do(turns.model_up(now))
            case said.RateLimited(retry_after=seconds):
                text = f"the conversation model's limit is reached; it answers in {seconds:.0f} s"
                self._trouble(
                    avatar_pb2.NOTICE_KIND_MODEL_RATE_LIMITED,
                    text,
                    time_left=duration.to_proto(seconds),
                )
            case _:
                self._hear_answer(event, now)

    def _hear_answer(
        self, event: said.Speech | said.Wrote | said.ToolCalled | said.AnswerOver, now: float
    ) -> None:
        answer = self._answers.get(event.answer)
        if answer is None:
            return  # it was given up
        match event:
            case said.Speech(samples=samples):
                answer.speech += samples
            case said.Wrote(text=text, start=start, end=end):
                answer.words.append(Words(text, start, end))
            case said.ToolCalled():
                call = avatar_pb2.ToolCall(
                    call_id=event.call_id,
                    turn=answer.turn or self._next_turn,
                    name=event.name,
                    arguments_json=event.arguments_json,
                )
                self._tell(Response(tool_call=call))
            case said.AnswerOver(ending=said.Ending.FAILED):
                answer.made = True
                _log.warning("an answer failed", why=event.why)
                if not self._in_trouble:
                    self._trouble(avatar_pb2.NOTICE_KIND_MODEL_UNAVAILABLE, event.why)
                self._metrics.turns.labels(TurnOutcome.FAILED).inc()
                self._do(self._turns.failed(now, event.retry_after))
            case said.AnswerOver():
                answer.made = True
                self._turns.made()
                self._recovered()
            case _:
                assert_never(event)

    # ---- What is to be done ----

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Answer(answer=number, cue=cue):
                    self._answers = {number: AnswerSpeech(number, self._rate)}
                    self._dialogue.answer(number, cue)
                case FallSilent(answer=number):
                    self._silence(self._answers[number])
                case GoOn(answer=number):
                    self._false_alarm(self._answers[number])
                case GiveUp(answer=number):
                    self._give_up(self._answers.pop(number))
                case _:
                    assert_never(action)

    def _silence(self, answer: AnswerSpeech) -> None:
        """The gateway drops what is not heard; silence is a turn of its own."""
        assert answer.turn is not None
        self._tell(Response(interrupted=avatar_pb2.Interrupted(turn=answer.turn)))
        self._next_turn = answer.turn + 2

    def _false_alarm(self, answer: AnswerSpeech) -> None:
        self._metrics.interruptions.labels(InterruptionKind.FALSE).inc()
        self._close(answer, interrupted=True)
        cut = answer.turn
        answer.rewind()
        kind = avatar_pb2.NOTICE_KIND_FALSE_INTERRUPTION
        text = "that was only a noise: the character goes on"
        self._notice(kind, text, turn=cut)

    def _give_up(self, answer: AnswerSpeech) -> None:
        self._dialogue.cancel(answer.number, answer.heard)
        if answer.turn is not None:
            self._metrics.turns.labels(TurnOutcome.INTERRUPTED).inc()
            self._metrics.interruptions.labels(InterruptionKind.REAL).inc()
            self._close(answer, interrupted=True)

    def _close(self, answer: AnswerSpeech, *, interrupted: bool) -> None:
        """The last word on a turn: what of it was heard."""
        if answer.turn is None:
            return
        text = answer.heard_text(answer.base) if interrupted else answer.text
        end = answer.heard if interrupted else answer.samples
        transcript = avatar_pb2.Transcript(
            party=avatar_pb2.PARTY_CHARACTER,
            turn=answer.turn,
            text=text,
            final=True,
            end_sample=max(0, end - answer.base),
            interrupted=interrupted,
        )
        self._tell(Response(transcript=transcript))

    def _go_on(self) -> None:
        """Send what may be sent, note what is over, and look at the clock anew."""
        for answer in list(self._answers.values()):
            if self._turns.may_speak:
                self._send(answer)
                if answer.finished:
                    self._finish(answer)
        self._changed.set()

    def _send(self, answer: AnswerSpeech) -> None:
        most = round(_PIECE_SECONDS * self._rate)
        while samples := answer.take(most):
            if answer.turn is None:
                answer.turn = self._next_turn
                self._next_turn += 1
                started = avatar_pb2.TurnStarted(turn=answer.turn)
                self._tell(Response(turn_started=started))
                self._turns.spoke()
            first = answer.sent - len(samples) // 2 - answer.base
            speech = Pcm(samples, self._rate, first_sample=first, turn=answer.turn)
            self._tell(Response(speech=speech.to_proto()))
        if answer.turn is None:
            return
        self._tell_words(answer)
        if answer.made and not answer.ended:
            answer.ended = True
            end = answer.samples - answer.base
            self._tell(Response(turn_ended=avatar_pb2.TurnEnded(turn=answer.turn, end_sample=end)))

    def _tell_words(self, answer: AnswerSpeech) -> None:
        for words in answer.untold():
            transcript = avatar_pb2.Transcript(
                party=avatar_pb2.PARTY_CHARACTER,
                turn=answer.turn or 0,
                text=words.text,
                first_sample=max(0, words.start - answer.base),
                end_sample=max(0, words.end - answer.base),
            )
            self._tell(Response(transcript=transcript))

    def _finish(self, answer: AnswerSpeech) -> None:
        del self._answers[answer.number]
        if answer.turn is not None:
            self._metrics.turns.labels(TurnOutcome.COMPLETED).inc()
            self._close(answer, interrupted=False)
        self._do(self._turns.heard(self._clock()))

    async def _keep_time(self) -> None:
        while True:
            self._changed.clear()
            due = self._turns.deadline
            wait = None if due is None else max(0.0, due - self._clock())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
                    continue
            self._do(self._turns.tick(self._clock()))
            self._go_on()

    # ---- What the client is told besides ----

    def _user_speech(self, *, speaking: bool, at: float) -> None:
        sample = min(round(at * self._user_rate), self._user_sample)
        speech = avatar_pb2.UserSpeech(speaking=speaking, sample=max(0, sample))
        self._tell(Response(user_speech=speech))

    def _user_words(self, event: said.UserSaid) -> avatar_pb2.Transcript:
        return avatar_pb2.Transcript(
            party=avatar_pb2.PARTY_USER,
            turn=self._next_turn,
            text=event.text,
            final=event.final,
            first_sample=max(0, round(event.start * self._user_rate)),
            end_sample=max(0, round(event.end * self._user_rate)),
        )

    def _trouble(self, kind: avatar_pb2.NoticeKind.ValueType, text: str, **more: Any) -> None:
        self._in_trouble = True
        self._notice(kind, text, **more)

    def _recovered(self) -> None:
        if self._in_trouble:
            self._in_trouble = False
            kind = avatar_pb2.NOTICE_KIND_MODEL_AVAILABLE
            self._notice(kind, "the conversation model answers again")

    def _notice(self, kind: avatar_pb2.NoticeKind.ValueType, text: str, **more: Any) -> None:
        self._tell(Response(notice=avatar_pb2.Notice(kind=kind, message=text, **more)))
