"""A dialogue within this process: ears, recogniser, writer and voice, one after the other.

On the path: conversation ↔ **dialogue** → ears, recogniser, writer, voice. An utterance is
recognised while the user's last pause is still being waited for, and an answer is spoken clause by
clause while it is still being written: of the time to the first sound, most is the patience that
the user is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from services.llm_bridge import speech_model as said
from services.llm_bridge.answer import Words, heard_text
from services.llm_bridge.local.clauses import clauses
from services.llm_bridge.local.ears import (
    RATE,
    Began,
    Done,
    Ear,
    Ears,
    Filled,
    JudgeOfVoice,
    Paused,
)
from services.llm_bridge.local.voice import Voice
from services.llm_bridge.local.writer import Writer
from services.llm_bridge.persona import Persona
from services.llm_bridge.speech_model import Cue, Ending, Greet, Line, Party, Past
from services.runtime.metrics import BridgeMetrics, SpeechStage
from services.runtime.resample import Resampler
from talkingmachines.errors import NoCapacity, TalkingMachinesError
from talkingmachines.media import Pcm

_log = structlog.stdlib.get_logger(__name__)

_MOST_LINES = 200  # of what was said that are kept


class Recognises(Protocol):
    """Speech to text."""

    async def text(self, sound: bytes) -> str: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a dialogue is put together from; all but the judge are shared by all dialogues."""

    judge: JudgeOfVoice
    recogniser: Recognises
    writer: Writer
    voice: Voice
    metrics: BridgeMetrics


@dataclass(slots=True)
class _Made:
    """The newest answer."""

    number: int
    words: list[Words] = field(default_factory=list)
    samples: int = 0
    task: asyncio.Task[None] | None = None
    line: int | None = None  # its place in what was said


class LocalDialogue:
    """A `Dialogue`."""

    def __init__(self, persona: Persona, history: Sequence[Past], parts: Parts) -> None:
        manners = persona.manners
        self._persona = persona
        self._parts = parts
        # The local writers call no functions.
        self._lines = [line for line in history if isinstance(line, Line)]
        self._ears = Ears(
            parts.judge,
            end_silence=manners.patience.end_silence,
            push_to_talk=manners.push_to_talk,
        )
        self._resampler: Resampler | None = None
        self._events: asyncio.Queue[said.Event | BaseException] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._heard: asyncio.Queue[tuple[Ear, list[asyncio.Task[str]]]] = asyncio.Queue()
        self._utterance: list[asyncio.Task[str]] = []  # parts of it that are long enough
        self._guess: tuple[bytes, asyncio.Task[str]] | None = None  # as of the last pause
        self._made = _Made(0)
        self._clock = asyncio.get_running_loop().time
        self._answered_at = 0.0

    async def events(self) -> AsyncIterator[said.Event]:
        self._spawn(self._listen())
        while True:
            event = await self._events.get()
            if isinstance(event, BaseException):
                raise event  # a fault of ours: it ends this conversation alone
            yield event

    # ---- The user ----

    def hear(self, pcm: Pcm) -> None:
        if self._resampler is None:
            self._resampler = Resampler(pcm.sample_rate, RATE)
        for event in self._ears.push(self._resampler.push(pcm)):
            self._note(event)

    def end_of_speech(self) -> None:
        if self._persona.manners.push_to_talk:
            self._note(self._ears.release())

    def read(self, text: str) -> None:
        self._say(Line(Party.USER, text))

    def _note(self, event: Ear) -> None:
        """Begin to recognise at once; who is told of it, is told in order."""
        match event:
            case Began():
                self._guess = None
            case Paused(sound=sound):
                self._guess = (sound, self._recognise(sound))
            case Filled(sound=sound):
                self._utterance.append(self._recognise(sound))
            case Done(sound=sound):
                if self._guess is not None and self._guess[0] == sound:
                    self._utterance.append(self._guess[1])
                elif event.voiced or self._utterance:
                    self._utterance.append(self._recognise(sound))
                self._guess = None
                waited = self._ears.now - event.end
                self._parts.metrics.stage_seconds.labels(SpeechStage.ENDPOINT).observe(waited)
                self._heard.put_nowait((event, self._utterance))
                self._utterance = []
                return
        self._heard.put_nowait((event, []))

    def _recognise(self, sound: bytes) -> asyncio.Task[str]:
        task = asyncio.create_task(self._recognised(sound))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _recognised(self, sound: bytes) -> str:
        try:
            return await self._parts.recogniser.text(sound)
        except TalkingMachinesError as error:
            _log.warning("an utterance was not recognised", error=error)
            return ""  # as if the user had made a noise

    async def _listen(self) -> None:
        while True:
            event, parts = await self._heard.get()
            match event:
                case Began(at=at):
                    self._events.put_nowait(said.UserStarted(at))
                case Paused(at=at):
                    self._events.put_nowait(said.UserPaused(at))
                case Done():
                    await self._understand(event, parts)
                case Filled():
                    pass

    async def _understand(self, utterance: Done, parts: list[asyncio.Task[str]]) -> None:
        started = self._clock()
        text = " ".join(filter(None, [await part for part in parts]))
        waited = self._clock() - started
        self._parts.metrics.stage_seconds.labels(SpeechStage.RECOGNISE).observe(waited)
        if text:
            self._say(Line(Party.USER, text))
            words = said.UserSaid(text, final=True, start=utterance.start, end=utterance.end)
            self._events.put_nowait(words)
        self._events.put_nowait(said.UserStopped(utterance.end, utterance.voiced, text))

    # ---- The character ----

    def answer(self, answer: int, cue: Cue) -> None:
        self._made = _Made(answer)
        self._answered_at = self._clock()
        self._made.task = self._spawn(self._make(self._made, cue))

    def cancel(self, answer: int, heard: int) -> None:
        made = self._made
        if made.number != answer:
            return
        if made.line is not None:
            text = heard_text(made.words, heard)
            # An empty line keeps its place: nothing after it moves.
            self._lines[made.line] = Line(Party.CHARACTER, text)
        if made.task is not None and not made.task.done():
            made.task.cancel()
            self._events.put_nowait(said.AnswerOver(answer, Ending.CANCELLED))

    def tool_result(self, call_id: str, result_json: str, *, failed: bool) -> None:
        """Nothing was asked: the local writers call no functions."""

    async def _make(self, made: _Made, cue: Cue) -> None:
        """Write and speak one answer."""
        over = said.AnswerOver(made.number, Ending.COMPLETE)
        try:
            async with aclosing(_ahead(clauses(self._written(cue)))) as written:
                async for clause in written:
                    await self._speak(made, clause)
        except NoCapacity as error:
            self._events.put_nowait(said.RateLimited(error.retry_after))
            over = _failure(made.number, error, error.retry_after)
        except TalkingMachinesError as error:
            over = _failure(made.number, error, 0.0)
        self._events.put_nowait(over)

    def _written(self, cue: Cue) -> AsyncIterator[str]:
        if isinstance(cue, Greet):  # word for word, whoever writes
            return _once(cue.text)
        lines = [line for line in self._lines if line.text]
        return self._parts.writer.write(self._persona, lines, cue)

    async def _speak(self, made: _Made, clause: str) -> None:
        stages = self._parts.metrics.stage_seconds
        first, started = not made.words, self._clock()
        samples = await self._parts.voice.speak(clause, self._persona.voice)
        if first:
            stages.labels(SpeechStage.REPLY).observe(started - self._answered_at)
            stages.labels(SpeechStage.SYNTHESISE).observe(self._clock() - started)
        begin, made.samples = made.samples, made.samples + len(samples) // 2
        made.words.append(Words(f"{clause} ", begin, made.samples))
        self._remember(made)
        self._events.put_nowait(said.Speech(made.number, samples))
        self._events.put_nowait(said.Wrote(made.number, f"{clause} ", begin, made.samples))

    def _remember(self, made: _Made) -> None:
        text = "".join(words.text for words in made.words).strip()
        if made.line is None:
            made.line = self._say(Line(Party.CHARACTER, text))
        else:
            self._lines[made.line] = Line(Party.CHARACTER, text)

    def _say(self, line: Line) -> int:
        """Write a line down; returns its place."""
        if len(self._lines) >= 2 * _MOST_LINES and self._made.line is None:
            del self._lines[:-_MOST_LINES]
        self._lines.append(line)
        return len(self._lines) - 1

    # ---- Its end ----

    async def close(self) -> None:
        """Stop whatever is being done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._events.put_nowait(fault)


def _failure(number: int, error: TalkingMachinesError, retry_after: float) -> said.AnswerOver:
    return said.AnswerOver(number, Ending.FAILED, str(error), retry_after)


async def _once(text: str) -> AsyncIterator[str]:
    yield text


async def _ahead(source: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """`source`, read ahead while what it gave before is being spoken."""
    ready: asyncio.Queue[str | None] = asyncio.Queue()  # an answer's worth at most

    async def read() -> None:
        try:
            async for piece in source:
                ready.put_nowait(piece)
        finally:
            ready.put_nowait(None)

    reading = asyncio.create_task(read())
    try:
        while (piece := await ready.get()) is not None:
            yield piece
        await reading
    finally:
        reading.cancel()
