"""A dialogue with a Realtime server, over as many connections as it takes.

On the path: conversation ↔ **dialogue** → link. The server allows one response at a time, and says
when one is over: a cancelled one is waited for before the next is asked for. A connection that is
lost is made again with what was said so far; one that grew old is changed while nobody speaks.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import structlog

from services.llm_bridge import speech_model as said
from services.llm_bridge.answer import Words, heard_text
from services.llm_bridge.persona import Persona
from services.llm_bridge.realtime import protocol
from services.llm_bridge.realtime.link import Link, connected, refusal
from services.llm_bridge.realtime.protocol import RATE, Message
from services.llm_bridge.settings import Realtime
from services.llm_bridge.speech_model import Cue, Ending, Line, Party, Past
from services.runtime.metrics import BridgeMetrics, Outcome
from services.runtime.resample import Resampler
from talkingmachines.errors import (
    BadInput,
    NoCapacity,
    PermissionDenied,
    TalkingMachinesError,
    Unavailable,
)
from talkingmachines.media import Pcm

_log = structlog.stdlib.get_logger(__name__)

_FIRST_BACKOFF = 0.25  # seconds
_UNNOTICED_SECONDS = 1.5  # without a connection, before anybody is told
_CANCEL_SECONDS = 5.0  # for a server to end a response that was cancelled
_KEPT_SECONDS = 5.0  # of the user's voice while there is no connection
_WATCH_SECONDS = 0.25
_MOST_PAST = 100  # of what was said, called and answered: told to a new connection


@dataclass(slots=True)
class _Response:
    """One answer as the server makes it."""

    answer: int
    cue: Cue
    asked_at: float = 0.0
    asked: bool = False  # whether the server knows of it
    id: str = ""  # once the server has begun
    item: str = ""  # that holds the speech that comes
    item_first: int = 0  # sample with which that begins
    samples: int = 0
    text: str = ""
    heard: int | None = None  # set when it was cancelled
    calls: set[str] = field(default_factory=set)  # functions whose results are awaited
    over: bool = False  # at the server, for now
    place: int | None = None  # of its words in what was said

    @property
    def awaited(self) -> bool:
        """Whether its first sign is due."""
        return self.asked and not self.over and not (self.id and self.samples)


class RealtimeDialogue:
    """A `Dialogue`."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        settings: Realtime,
        persona: Persona,
        history: Sequence[Past],
        metrics: BridgeMetrics,
    ) -> None:
        self._http = http
        self._settings = settings
        self._persona = persona
        self._past = list(history)
        self._metrics = metrics
        self._clock = asyncio.get_running_loop().time
        self._events: asyncio.Queue[said.Event | BaseException] = asyncio.Queue()
        self._link: Link | None = None
        self._linked_at = 0.0
        self._lost_at: float | None = self._clock()
        self._told_down = False
        self._resampler: Resampler | None = None
        self._kept: deque[bytes] = deque()  # voice that no connection has heard
        self._heard = 0  # samples of voice at RATE, in all
        self._offset = 0  # of these, before the connection's first
        self._speaking_since: float | None = None
        self._appended = 0  # samples of voice that the server has and that were not committed
        self._commit_owed = False
        self._response: _Response | None = None  # the newest
        self._ending: tuple[_Response, float] | None = None  # cancelled; when to lose patience
        self._limit_seconds = 0.0  # until the rate limit is reset

    async def events(self) -> AsyncIterator[said.Event]:
        while True:
            event = await self._events.get()
            if isinstance(event, BaseException):
                raise event  # a fault of ours: it ends this conversation alone
            yield event

    async def run(self) -> None:
        """Keep connected, for ever."""
        backoff = _FIRST_BACKOFF
        try:
            while True:
                try:
                    await self._hold()
                except TalkingMachinesError as error:
                    if self._link is not None:
                        backoff = _FIRST_BACKOFF
                    self._lost(error)
                    await self._pause(backoff, error)
                    backoff = min(2 * backoff, self._settings.last_backoff)
        except Exception as fault:  # noqa: BLE001  raised where events are read
            self._events.put_nowait(fault)

    # ---- What the conversation wants ----

    def hear(self, pcm: Pcm) -> None:
        if self._resampler is None:
            self._resampler = Resampler(pcm.sample_rate, RATE)
        samples = self._resampler.push(pcm)
        if not samples:
            return
        if self._link is None:
            self._kept.append(samples)
            while sum(map(len, self._kept)) > 2 * RATE * _KEPT_SECONDS:
                self._kept.popleft()
        else:
            self._append(samples)
        self._heard += len(samples) // 2

    def end_of_speech(self) -> None:
        if not self._persona.manners.push_to_talk:
            return
        if self._kept:
            self._commit_owed = True  # to the next connection, with what it has not heard
        elif self._appended:
            self._send(protocol.commit())
        else:
            self._put(said.UserStopped(self._heard / RATE, 0.0, ""))

    def read(self, text: str) -> None:
        typed = Line(Party.USER, text)
        self._past.append(typed)
        if self._link is not None:
            self._send(protocol.line(self._link.dialect, typed))

    def answer(self, answer: int, cue: Cue) -> None:
        self._response = _Response(answer, cue)
        self._begin()

    def cancel(self, answer: int, heard: int) -> None:
        response = self._response
        if response is None or response.answer != answer:
            return
        response.heard = heard
        self._remember(response)
        self._response = None
        if response.over and not response.calls:
            self._truncate(response)
            return
        self._put(said.AnswerOver(answer, Ending.CANCELLED))
        if response.id and not response.over:
            self._ending = (response, self._clock() + _CANCEL_SECONDS)
            self._send(protocol.cancel_response(response.id))
        elif response.asked and not response.over:  # it has not begun: cancelled when it does
            self._ending = (response, self._clock() + _CANCEL_SECONDS)

    def tool_result(self, call_id: str, result_json: str, *, failed: bool) -> None:
        del failed  # the result says so in words
        if not self._awaits(call_id):
            return
        told = said.Told(call_id, result_json)
        self._past.append(told)
        self._send(protocol.tool_output(told))
        response = self._response
        if response is not None and call_id in response.calls:
            response.calls.discard(call_id)
            if response.over and not response.calls:
                self._ask(response)

    def _awaits(self, call_id: str) -> bool:
        """Whether the model asked for this, here or at another bridge, and was not told yet."""
        asked = {it.call_id for it in self._past if isinstance(it, said.Asked)}
        told = {it.call_id for it in self._past if isinstance(it, said.Told)}
        return call_id in asked - told

    # ---- One connection ----

    async def _hold(self) -> None:
        """Connect and talk until the connection is lost, or old and not needed.

        Raises:
            TalkingMachinesError: why it was lost, or not made.
        """
        made = connected(self._http, self._settings, self._persona)
        try:
            async with made as link:
                self._up(link)
                writing = asyncio.create_task(link.write())
                watching = asyncio.create_task(self._watch())
                reading = asyncio.create_task(self._read(link))
                try:
                    both = {watching, reading}
                    done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                finally:
                    for task in (writing, watching, reading):
                        task.cancel()
                    await asyncio.gather(writing, watching, reading, return_exceptions=True)
        except TalkingMachinesError:
            if self._link is None:
                self._metrics.provider_connects.labels(Outcome.FAILED).inc()
            raise
        self._link = None  # changed for a new one, while nobody speaks

    def _up(self, link: Link) -> None:
        self._metrics.provider_connects.labels(Outcome.OK).inc()
        self._metrics.provider_up.set(1)
        self._link = link
        self._linked_at = self._clock()
        self._lost_at = None
        self._ending = None
        link.send(*protocol.replay(link.dialect, self._past[-_MOST_PAST:]))
        self._offset = self._heard - sum(map(len, self._kept)) // 2
        while self._kept:
            self._append(self._kept.popleft())
        if self._commit_owed:
            self._commit_owed = False
            self._send(protocol.commit())
        if self._told_down:
            self._told_down = False
            self._put(said.ModelUp())
        self._begin()

    def _lost(self, error: TalkingMachinesError) -> None:
        """The connection is gone, and with it what was under way."""
        _log.warning("no connection to the speech model", error=error)
        self._metrics.provider_up.set(0)
        self._metrics.provider_errors.inc()
        self._lost_at = self._lost_at or self._clock()
        self._link, self._ending, self._appended = None, None, 0
        if self._speaking_since is not None:
            self._speaking_since = None  # what the user was saying is lost
            self._put(said.UserStopped(self._heard / RATE, 0.0, ""))
        response = self._response
        if response is not None:
            response.item = ""  # no other connection knows it
            if response.asked and (response.calls or not response.over):
                self._fail(response, str(error), 0.0)
        if isinstance(error, NoCapacity):
            self._put(said.RateLimited(error.retry_after))

    async def _pause(self, backoff: float, error: TalkingMachinesError) -> None:
        """Wait before the next attempt; tell of the loss once it has lasted."""
        lost_at = self._lost_at or self._clock()
        final = isinstance(error, PermissionDenied | BadInput)  # until an operator mends it
        seconds = self._settings.last_backoff if final else backoff * random.uniform(0.5, 1.5)
        if isinstance(error, NoCapacity):
            seconds = max(seconds, error.retry_after)
        if not self._told_down and (
            final or self._clock() - lost_at + seconds > _UNNOTICED_SECONDS
        ):
            self._told_down = True
            self._put(said.ModelDown(str(error)))
            if self._response is not None and not self._response.over:
                self._fail(self._response, str(error), 0.0)
        await asyncio.sleep(seconds)

    async def _read(self, link: Link) -> None:
        async for event in link.events():
            self._take(event)
        raise Unavailable("the speech model ended the connection", retry_after=0.0)

    async def _watch(self) -> None:
        """Lose patience with a server that is silent; leave a connection that is old."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now, response = self._clock(), self._response
            if self._ending is not None and now >= self._ending[1]:
                raise Unavailable("the speech model does not end its answer", retry_after=0.0)
            if response is not None and response.awaited:
                limit = self._settings.answer_seconds
                if now - response.asked_at > limit:
                    what = f"the speech model was silent for {limit:g} s"
                    raise Unavailable(what, retry_after=0.0)
            busy = response is not None and (not response.over or response.calls)
            idle = not busy and self._speaking_since is None and self._ending is None
            if idle and now - self._linked_at > self._settings.renew_seconds:
                return

    # ---- What the server says ----

    def _take(self, event: Message) -> None:
        match event["type"]:
            case "input_audio_buffer.speech_started":
                self._speaking_since = self._place(event, "audio_start_ms")
                self._put(said.UserStarted(self._speaking_since))
            case "input_audio_buffer.speech_stopped":
                self._stopped(self._place(event, "audio_end_ms"))
            case "input_audio_buffer.committed" if self._persona.manners.push_to_talk:
                self._stopped(self._heard / RATE)
            case "conversation.item.input_audio_transcription.completed":
                self._user_said(str(event.get("transcript", "")).strip())
            case "rate_limits.updated":
                self._note_limits(event.get("rate_limits"))
            case "error":
                self._complaint(event.get("error"))
            case kind if kind.startswith("response."):
                self._take_response(kind, event)
            case _:
                pass  # news of what we know, or of no use

    def _take_response(self, kind: str, event: Message) -> None:
        if kind == "response.created":
            self._begun(_text(event.get("response"), "id"))
            return
        done = kind == "response.done"
        name = _text(event.get("response"), "id") if done else str(event.get("response_id", ""))
        if self._ending is not None and name == self._ending[0].id:
            if done:
                self._ended()
            return
        response = self._response
        if response is None or response.over or name != response.id:
            return
        match kind:
            case "response.output_audio.delta":
                samples = protocol.sound(event)
                if (item := _text(event, "item_id")) != response.item:
                    response.item, response.item_first = item, response.samples
                response.samples += len(samples) // 2
                self._put(said.Speech(response.answer, samples))
            case "response.output_audio_transcript.delta":
                self._wrote(response, str(event.get("delta", "")))
            case "response.output_item.done":
                self._item_done(response, event.get("item"))
            case "response.done":
                self._done(response, event["response"])

    def _begun(self, name: str) -> None:
        if self._ending is not None and not self._ending[0].id:
            self._ending[0].id = name
            self._send(protocol.cancel_response(name))
        elif self._response is not None and not self._response.id:
            self._response.id = name
        else:
            self._send(protocol.cancel_response(name))  # nobody asked for it

    def _wrote(self, response: _Response, text: str) -> None:
        response.text += text
        place = response.samples
        self._put(said.Wrote(response.answer, text, place, place))

    def _item_done(self, response: _Response, item: Any) -> None:
        if _text(item, "type") == "function_call":
            call_id = _text(item, "call_id")
            response.calls.add(call_id)
            name, arguments = _text(item, "name"), _text(item, "arguments") or "{}"
            self._past.append(said.Asked(call_id, name, arguments))
            self._put(said.ToolCalled(response.answer, call_id, name, arguments))

    def _done(self, response: _Response, told: Message) -> None:
        """The server ended the response by itself."""
        response.over = True
        self._remember(response)
        details = told.get("status_details")
        error = details.get("error") if isinstance(details, dict) else None
        if told.get("status") == "failed":
            why = refusal(error)
            self._metrics.provider_errors.inc()
            seconds = 0.0
            if isinstance(why, NoCapacity):
                seconds = max(why.retry_after, self._limit_seconds)
                self._put(said.RateLimited(seconds))
            self._fail(response, str(why), seconds)
        elif not response.calls:
            self._put(said.AnswerOver(response.answer, Ending.COMPLETE))

    def _ended(self) -> None:
        """A cancelled response is over: the server can do the next."""
        assert self._ending is not None
        response, self._ending = self._ending[0], None
        self._truncate(response)
        self._begin()

    def _stopped(self, at: float) -> None:
        since, self._speaking_since = self._speaking_since, None
        voiced = self._appended / RATE if since is None else at - since
        self._appended = 0
        self._put(said.UserStopped(at, max(0.0, voiced), None))

    def _user_said(self, text: str) -> None:
        if text:
            self._past.append(Line(Party.USER, text))
            at = self._heard / RATE
            self._put(said.UserSaid(text, final=True, start=at, end=at))

    def _note_limits(self, limits: Any) -> None:
        resets = [
            float(limit.get("reset_seconds", 0))
            for limit in (limits if isinstance(limits, list) else [])
            if isinstance(limit, dict) and not limit.get("remaining", 1)
        ]
        self._limit_seconds = max(resets, default=0.0)

    def _complaint(self, error: Any) -> None:
        """An `error` event: about something we sent, or about the session."""
        self._metrics.provider_errors.inc()
        code, about = _text(error, "code"), _text(error, "event_id")
        _log.warning("the speech model complains", code=code, about=about)
        why, response = refusal(error), self._response
        match code:
            case "response_cancel_not_active" if self._ending is not None:
                self._ended()
            case "input_audio_buffer_commit_empty":
                self._put(said.UserStopped(self._heard / RATE, 0.0, ""))
            case "session_expired":
                raise Unavailable("the speech model's session expired", retry_after=0.0)
            case _ if response is not None and about == protocol.event_of(response.answer):
                seconds = why.retry_after if isinstance(why, NoCapacity) else 0.0
                if seconds:
                    self._put(said.RateLimited(seconds))
                self._fail(response, str(why), seconds)
            case _ if isinstance(why, NoCapacity):
                self._put(said.RateLimited(why.retry_after))

    # ---- Responses ----

    def _begin(self) -> None:
        """Ask for the newest answer, unless the server still has another to end."""
        response = self._response
        free = self._link is not None and self._ending is None
        if response is not None and free and not response.asked and not response.over:
            self._ask(response)

    def _ask(self, response: _Response) -> None:
        response.id, response.asked, response.over = "", True, False
        response.asked_at = self._clock()
        self._send(protocol.create_response(response.answer, response.cue, self._persona))

    def _fail(self, response: _Response, why: str, seconds: float) -> None:
        response.over = True
        response.calls.clear()
        self._put(said.AnswerOver(response.answer, Ending.FAILED, why, seconds))

    def _truncate(self, response: _Response) -> None:
        """Tell the server what was really heard, never more than it sent."""
        if response.item and response.heard is not None and response.heard < response.samples:
            heard = max(0, response.heard - response.item_first)
            self._send(protocol.truncate(response.item, heard))

    def _remember(self, response: _Response) -> None:
        """Write down what was said, as far as it was heard."""
        text = response.text.strip()
        if response.heard is not None:
            text = heard_text([Words(text, 0, response.samples)], response.heard)
        spoken = Line(Party.CHARACTER, text)
        if response.place is not None:
            self._past[response.place] = spoken
        elif text:
            response.place = len(self._past)
            self._past.append(spoken)

    # ---- Small things ----

    def _append(self, samples: bytes) -> None:
        self._appended += len(samples) // 2
        self._send(protocol.append(samples))

    def _send(self, message: Message) -> None:
        """Send it; without a connection it is not needed: a new one is told what was said."""
        if self._link is not None:
            self._link.send(message)

    def _put(self, event: said.Event) -> None:
        self._events.put_nowait(event)

    def _place(self, event: Message, field_: str) -> float:
        """Seconds of the user's voice, from milliseconds of this connection's."""
        milliseconds = event.get(field_)
        if not isinstance(milliseconds, int | float):
            return self._heard / RATE
        return self._offset / RATE + milliseconds / 1000


def _text(value: Any, name: str) -> str:
    """A text of a message's part, "" when it has none."""
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""
