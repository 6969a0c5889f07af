"""CONVERSE: the character's speech comes from a conversation with a speech model, by the bridge.

On the path: client → **converse** → bridge → **converse** → chunker. The bridge says what is to be
said, faster than it is played; here it is held back until it is needed, dropped when the user
interrupts, and the bridge is told what was really heard. A bridge that is lost is replaced by
another with what was said so far; meanwhile the character listens, and the client knows why.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from services.gateway.history import History
from services.gateway.outbox import Event
from services.gateway.persona import check_text
from services.gateway.session import Session
from services.gateway.speech import Character
from services.gateway.spoken import Spoken
from talkingmachines import duration
from talkingmachines.errors import BadInput, TalkingMachinesError, TimedOut, Unavailable
from talkingmachines.fields import FieldPath
from talkingmachines.media import Pcm
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import avatar_pb2, llm_bridge_pb2, media_pb2, storage_pb2

if TYPE_CHECKING:  # a class that only the stubs' types have
    from talkingmachines.v1.llm_bridge_pb2_grpc import LlmBridgeServiceAsyncStub

_log = structlog.stdlib.get_logger(__name__)

_TICK_SECONDS = 0.1  # between looks at what is played
_AHEAD_SECONDS = 2.0  # of speech given to the chunker before it is needed
_OPEN_SECONDS = 10.0
_FIRST_BACKOFF = 0.1
_LAST_BACKOFF = 2.0
_MOST_UNSENT = 500  # messages for a bridge that does not read: seconds of voice
_MOST_HELD_SECONDS = 600.0  # of speech that is made and not needed yet
_MOST_WRITTEN = 100  # texts for a bridge to come
_RESULT = 100_000  # characters

Request = llm_bridge_pb2.ConverseRequest
Response = llm_bridge_pb2.ConverseResponse


@dataclass(slots=True)
class _Answer:
    """The turn that the character says, from its first sample to the last one heard."""

    theirs: int  # its number at the bridge
    ours: int  # and in the session
    received: int = 0  # samples, at the bridge's rate
    complete: bool = False  # whether the bridge sent all of it
    closed: bool = False  # whether the chunker knows
    orphan: bool = False  # whether the bridge that said it is gone


class Converse:
    """One session's `SpeechSource`."""

    def __init__(
        self,
        session: Session,
        stub: LlmBridgeServiceAsyncStub,
        *,
        session_id: str,
        persona: avatar_pb2.Persona,
        spec: StreamSpec,
        said: storage_pb2.Conversation,
    ) -> None:
        self._session = session
        self._stub = stub
        self._session_id = session_id
        self._persona = persona
        self._spec = spec
        self._spoken = Spoken(spec, session.log)
        self._clock = asyncio.get_running_loop().time
        self._unsent: asyncio.Queue[Request] | None = None  # while a bridge is there
        self._written: deque[avatar_pb2.Transcript] = deque(maxlen=_MOST_WRITTEN)  # nobody read it
        self._call: Any = None
        self._rate = 0  # of the bridge's speech, Hz
        self._held: deque[Pcm] = deque()  # speech that is not needed yet
        self._answer: _Answer | None = None
        self._newest = (0, 0)  # turn that began last, at the bridge and in the session
        self._cut_at = (0, 0)  # where the answer that was cut off last began and ended
        self._words: deque[avatar_pb2.Transcript] = deque()  # whose place is not known yet
        self._history = History(said)
        self._user_rate = 0
        self._user_sample = 0  # next of the user's voice
        self._user_before = 0  # of these, before this bridge
        self._user_speaks = False
        self._owed_words = False  # the last answer as it was really heard, which the bridge tells
        self._asked_at: float | None = None  # when the user stopped speaking
        self._leave_at: float | None = None  # the bridge wants to be left by then
        self._told_down = False
        self._over = False

    # ---- What the client says ----

    def take(self, request: avatar_pb2.TalkRequest) -> None:
        match request.WhichOneof("message"):
            case "audio":
                self._send(audio=self._checked(request.audio))
            case "end_of_speech":
                self._user_stopped(self._user_sample)
                self._send(end_of_speech=request.end_of_speech)
            case "text":
                check_text(request.text.text, least=1, most=10_000, at="text.text")
                self._wrote(request.text.text)
            case "tool_result":
                result = request.tool_result
                check_text(result.result_json, most=_RESULT, at="tool_result.result_json")
                self._history.answered(result)
                self._remember()
                self._send(tool_result=result)
            case other:
                raise BadInput(other or "message", got="a message", expected="another")

    def interrupt(self, turn: int) -> None:
        """Stop at once; the bridge is told what was heard, and that it was meant."""
        if self._uninterruptible:
            return
        answer, heard = self._answer, self._heard()
        before = self._session.newest_turn
        self._session.interrupt(turn)
        cut = self._session.newest_turn != before
        if answer is not None and (cut or turn in (0, answer.ours)):
            self._drop(answer, heard)
        if cut or turn == 0:
            self._send(interrupt=avatar_pb2.Interrupt())

    def hang_up(self) -> None:
        self._over = True
        self._held.clear()
        self._unsent = None
        if self._call is not None:
            self._call.cancel()

    def _wrote(self, text: str) -> None:
        """The user typed: as if it had been said now."""
        self._asked_at, now = self._clock(), self._session.shown.sample
        words = avatar_pb2.Transcript(
            party=avatar_pb2.PARTY_USER,
            turn=self._session.newest_turn + 1,
            text=text,
            final=True,
            first_sample=now,
            end_sample=now,
        )
        self._history.number(words)
        self._session.tell(Event(transcript=words))
        if self._unsent is None:
            self._written.append(words)
        else:
            self._ask(words)

    def _ask(self, words: avatar_pb2.Transcript) -> None:
        self._history.said(words)
        self._remember()
        self._send(text=avatar_pb2.Text(text=words.text))

    def _checked(self, message: media_pb2.Pcm) -> media_pb2.Pcm:
        pcm = Pcm.from_proto(message, at="audio")
        with FieldPath("audio"):
            if pcm.turn or pcm.chunk or pcm.speaker:
                got = f"turn {pcm.turn}, chunk {pcm.chunk}, speaker {pcm.speaker}"
                raise BadInput("turn, chunk and speaker", got=got, expected="0 from a user")
            if self._user_rate not in (0, pcm.sample_rate):
                expected = f"{self._user_rate} Hz, as before"
                raise BadInput("sample_rate", got=f"{pcm.sample_rate} Hz", expected=expected)
            if message.HasField("first_sample") and pcm.first_sample != self._user_sample:
                expected = f"none, or {self._user_sample}"
                raise BadInput("first_sample", got=pcm.first_sample, expected=expected)
        self._user_rate = pcm.sample_rate
        self._user_sample += len(pcm)
        return message

    # ---- One bridge after the other ----

    async def run(self, character: Character) -> None:
        del character  # the session, which we know
        self._break_off(interrupted=True)  # what a gateway before us began to say
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            backoff = _FIRST_BACKOFF
            while not self._over:
                try:
                    await self._hold()
                except TalkingMachinesError as error:
                    if self._over:
                        break
                    backoff = _FIRST_BACKOFF if self._unsent is not None else backoff
                    if self._lost(error):
                        await asyncio.sleep(backoff * random.uniform(0.5, 1.5))
                        backoff = min(2 * backoff, _LAST_BACKOFF)
            await asyncio.Event().wait()  # what is left is played

    async def _hold(self) -> None:
        """Converse with one bridge until it is lost.

        Raises:
            TalkingMachinesError: why.
        """
        unsent: asyncio.Queue[Request] = asyncio.Queue(_MOST_UNSENT)
        unsent.put_nowait(Request(open=self._opening()))
        call = self._call = self._stub.Converse(_sent(unsent))
        try:
            replies = aiter(call)
            await self._opened(replies)
            self._unsent = unsent
            self._found()
            async for response in replies:
                self._hear(response)
            raise Unavailable("the bridge ended the conversation", retry_after=0.0)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Only the call was cancelled: by us, to leave this bridge.
            raise Unavailable("the bridge was left", retry_after=0.0) from None
        finally:
            self._call = None
            call.cancel()

    async def _opened(self, replies: AsyncIterator[Response]) -> None:
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                first = await anext(replies, None)
        except TimeoutError:
            raise TimedOut("opening a conversation", limit=_OPEN_SECONDS) from None
        if first is None or not first.HasField("opened"):
            raise Unavailable("the bridge did not open the conversation", retry_after=1.0)
        rate = first.opened.speech_sample_rate
        if self._rate not in (0, rate):
            raise Unavailable(f"a bridge speaks at {rate} Hz, not {self._rate}", retry_after=1.0)
        self._rate = rate

    def _opening(self) -> llm_bridge_pb2.ConverseOpen:
        return llm_bridge_pb2.ConverseOpen(
            session_id=self._session_id,
            persona=self._persona,
            history=self._history.events(self._words),
            next_turn=self._session.newest_turn + 1,
        )

    def _found(self) -> None:
        self._user_before = self._user_sample
        while self._written:
            self._ask(self._written.popleft())
        if self._told_down:
            self._told_down = False
            kind = avatar_pb2.NOTICE_KIND_MODEL_AVAILABLE
            self._notice(kind, "the conversation goes on")

    def _lost(self, error: TalkingMachinesError) -> bool:
        """Let what was said be played; returns whether to wait before the next attempt."""
        moving = self._leave_at is not None and self._unsent is not None
        self._unsent, self._leave_at = None, None
        self._user_speaks = self._owed_words = False
        if self._answer is not None:
            self._answer.complete = self._answer.orphan = True
        if moving:
            return False
        _log.warning("no bridge", error=error)
        if not self._told_down:
            self._told_down = True
            kind = avatar_pb2.NOTICE_KIND_MODEL_UNAVAILABLE
            self._notice(kind, f"the conversation is interrupted: {error}")
        return True

    def _send(self, **message: Any) -> None:
        """To the bridge, if there is one that reads; voice that nobody hears is gone."""
        if self._unsent is not None:
            with suppress(asyncio.QueueFull):
                self._unsent.put_nowait(Request(**message))

    # ---- What the bridge says ----

    def _hear(self, response: Response) -> None:
        match response.WhichOneof("message"):
            case "speech":
                self._speech(Pcm.from_proto(response.speech, at="speech"))
            case "turn_started":
                ours = self._session.newest_turn + 1
                self._newest = (response.turn_started.turn, ours)
                self._owed_words = True
                self._answer = _Answer(*self._newest)
                self._words.clear()
            case "turn_ended":
                if self._answer is not None and self._answer.theirs == response.turn_ended.turn:
                    self._answer.complete = True
            case "interrupted":
                self._cut(response.interrupted.turn)
            case "transcript":
                self._transcript(response.transcript)
            case "user_speech":
                self._user_speech(response.user_speech)
            case "notice":
                if response.notice.turn:
                    response.notice.turn = self._ours(response.notice.turn)
                self._session.tell(Event(notice=response.notice))
            case "tool_call":
                response.tool_call.turn = self._ours(response.tool_call.turn)
                self._history.called(response.tool_call)
                self._remember()
                self._session.tell(Event(tool_call=response.tool_call))
            case "hand_over":
                left = duration.from_proto(response.hand_over.time_left)
                self._leave_at = self._clock() + 0.8 * left
            case _:
                pass  # of a newer bridge
        self._go_on()

    def _speech(self, pcm: Pcm) -> None:
        answer = self._answer
        if answer is None or answer.theirs != pcm.turn or self._over:
            return
        answer.received += len(pcm)
        if answer.received / self._rate > _MOST_HELD_SECONDS:
            raise Unavailable("the bridge does not stop speaking", retry_after=0.0)
        self._held.append(replace(pcm, turn=answer.ours, first_sample=0))

    def _cut(self, theirs: int) -> None:
        """The user speaks over the answer: nothing of it is heard from now on."""
        answer, heard = self._answer, self._heard()
        if answer is None or answer.theirs != theirs:
            return
        if self._session.newest_turn >= answer.ours:
            self._session.interrupt(answer.ours)
        self._drop(answer, heard)

    def _drop(self, answer: _Answer, heard: int) -> None:
        """Forget the rest of an answer, of which so much was heard."""
        self._held.clear()
        self._words.clear()
        self._answer = None
        self._report(answer, heard)
        if answer.orphan:
            self._break_off(interrupted=True)

    def _transcript(self, words: avatar_pb2.Transcript) -> None:
        character = words.party == avatar_pb2.PARTY_CHARACTER
        words.turn = self._ours(words.turn)
        self._history.number(words)
        if words.final:
            self._owed_words = self._owed_words and not character
            self._history.said(words)
            self._remember()
        if character and not words.final:
            self._words.append(words)  # until its place is known
            return
        words.first_sample, words.end_sample = (
            self._places(words) if character else self._user_places(words)
        )
        self._session.tell(Event(transcript=words))

    def _user_speech(self, speech: avatar_pb2.UserSpeech) -> None:
        speech.sample += self._user_before
        self._user_speaks = speech.speaking
        if speech.speaking:
            self._asked_at = None
        else:
            self._user_stopped(speech.sample)
        self._session.tell(Event(user_speech=speech))

    def _user_stopped(self, sample: int) -> None:
        ago = (self._user_sample - sample) / max(1, self._user_rate)
        self._asked_at = self._clock() - max(0.0, ago)

    # ---- What is played ----

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._go_on()
            if self._call is not None and self._leave_at is not None:
                heard = not self._user_speaks and self._asked_at is None
                quiet = heard and self._answer is None and not self._owed_words
                if quiet or self._clock() >= self._leave_at:
                    self._call.cancel()

    def _go_on(self) -> None:
        """Give the chunker what it needs, the bridge what was heard, the client its words."""
        while self._held and self._session.buffered_seconds < _AHEAD_SECONDS:
            self._session.say(self._held.popleft())
        answer = self._answer
        if answer is None or self._over:
            return
        if answer.complete and not self._held and not answer.closed:
            answer.closed = True
            self._session.end_of_speech(0)
        self._spoken.note()
        if self._spoken.turn != answer.ours:
            return
        self._tell_words()
        self._count_answer()
        heard = self._heard()
        self._report(answer, heard)
        if answer.closed and heard >= answer.received:
            self._answer = None
            if answer.orphan:
                self._break_off(interrupted=False)

    def _heard(self) -> int:
        """Samples of the answer that the client has heard, at the bridge's rate."""
        answer, spoken = self._answer, self._spoken
        spoken.note()
        if answer is None or spoken.turn != answer.ours:
            return 0
        self._cut_at = (spoken.place(0) or 0, self._session.shown.sample)
        heard = spoken.heard(self._session.shown.sample)
        if spoken.complete and heard >= spoken.samples:
            return answer.received  # resampling rounds
        return min(answer.received, heard * self._rate // self._spec.sample_rate)

    def _report(self, answer: _Answer, heard: int) -> None:
        position = avatar_pb2.PlaybackPosition(turn=answer.theirs, turn_samples=heard)
        self._send(playback=position)

    def _tell_words(self) -> None:
        while self._words and self._place(self._words[0].first_sample) is not None:
            words = self._words.popleft()
            words.first_sample, words.end_sample = self._places(words)
            self._session.tell(Event(transcript=words))
            self._history.saying(words)
            self._remember()

    def _break_off(self, *, interrupted: bool) -> None:
        """Nobody will say how an answer ended: what the client was told of it is all there is."""
        if (words := self._history.broken_off()) is not None:
            words.interrupted = interrupted
            self._session.tell(Event(transcript=words))
            self._remember()

    def _remember(self) -> None:
        self._session.remember(self._history.to_proto())

    def _count_answer(self) -> None:
        """How long the user waited, once the answer is seen."""
        begin, shown = self._spoken.place(0), self._session.shown.sample
        if self._asked_at is not None and begin is not None and shown > begin:
            since = (shown - begin) / self._spec.sample_rate
            self._session.answered(self._clock() - since - self._asked_at)
            self._asked_at = None

    # ---- Numbers and places ----

    def _ours(self, theirs: int) -> int:
        """A turn of the bridge's as the session counts: the one that is on, or the next."""
        began, ours = self._newest
        return ours if theirs <= began else self._session.newest_turn + 1

    def _place(self, sample: int) -> int | None:
        """A sample of the turn's speech, at the bridge's rate, on the media clock."""
        return self._spoken.place(sample * self._spec.sample_rate // max(1, self._rate))

    def _places(self, words: avatar_pb2.Transcript) -> tuple[int, int]:
        if words.interrupted:
            return self._cut_at
        first = self._place(words.first_sample) if self._spoken.turn == words.turn else None
        if first is None:
            return 0, 0
        length = (words.end_sample - words.first_sample) * self._spec.sample_rate
        return first, first + length // max(1, self._rate)

    def _user_places(self, words: avatar_pb2.Transcript) -> tuple[int, int]:
        """What the user said so long ago was said at what was shown so long ago."""
        now, rate = self._session.shown.sample, max(1, self._user_rate)
        first, end = (
            max(
                0,
                now - (self._user_sample - self._user_before - at) * self._spec.sample_rate // rate,
            )
            for at in (words.first_sample, words.end_sample)
        )
        return first, end

    @property
    def _uninterruptible(self) -> bool:
        manners = self._persona.turn_taking
        greeting = bool(self._persona.greeting) and not self._history.user_spoke
        first = self._answer is not None and self._answer.ours == 1
        return manners.uninterruptible or (manners.uninterruptible_greeting and greeting and first)

    def _notice(self, kind: avatar_pb2.NoticeKind.ValueType, text: str) -> None:
        self._session.tell(Event(notice=avatar_pb2.Notice(kind=kind, message=text)))


async def _sent(unsent: asyncio.Queue[Request]) -> AsyncIterator[Request]:
    while True:
        yield await unsent.get()
