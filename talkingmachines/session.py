"""One live session as its client holds it, whatever becomes of the connections that carry it.

On the path: caller ⇄ **session** ⇄ wire. When a connection breaks, or its gateway says that it
will stop, the session goes on over a new one with its resume token: speech that the fleet does not
hold is sent again, media that was delivered is not delivered again. The caller sees `Reconnecting`
and `Resumed`, and otherwise nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from talkingmachines import duration
from talkingmachines.errors import (
    EngineFailure,
    Fenced,
    Internal,
    NoCapacity,
    TalkingMachinesError,
    Unavailable,
)
from talkingmachines.media import Pcm, spec_from_proto
from talkingmachines.outgoing import Outgoing
from talkingmachines.picture import VideoFormat, VideoFrame, VideoSettings
from talkingmachines.received import Preroll, Received
from talkingmachines.spec import StreamSpec
from talkingmachines.speech import Piece, Speech, piece, pieces
from talkingmachines.v1 import avatar_pb2, media_pb2


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The connection is lost; the picture stands still until `Resumed`."""

    error: TalkingMachinesError


@dataclass(frozen=True, slots=True)
class Resumed:
    """The session goes on over a new connection."""

    seconds: float  # without a connection


Event = (
    avatar_pb2.Transcript
    | avatar_pb2.TurnStarted
    | avatar_pb2.TurnEnded
    | avatar_pb2.Interrupted
    | avatar_pb2.UserSpeech
    | avatar_pb2.Statistics
    | avatar_pb2.Notice
    | avatar_pb2.ToolCall
    | Reconnecting
    | Resumed
)
Item = VideoFrame | Preroll | Pcm | Event


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


_INBOX = 64  # items; whoever does not read lets the gateway drop frames, as on a slow line
_UNSENT_SECONDS = 1.0  # of speech that `push` lets wait here
_MESSAGE_GAP_SECONDS = 0.01  # so that many small pieces travel as few messages
_REPORT_SECONDS = 0.2
_FAREWELL_SECONDS = 2.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 1.0  # between attempts to reconnect

Start = Callable[[], Any]  # makes a call of Talk, a bidirectional stream


class Session:
    """A session; entering opens it, leaving ends it.

    Iterating gives frames, speech and events as they come, in real time, until the session is
    over; every frame comes before the sound that belongs to it. One task iterates.

    Args:
        start: makes a new connection's stream.
        opening: what is wanted.
        on_queued: called while the fleet is full.
    """

    def __init__(
        self,
        start: Start,
        opening: avatar_pb2.Open,
        *,
        on_queued: Callable[[avatar_pb2.Queued], None] = lambda _: None,
    ) -> None:
        self._start = start
        self._opening = opening
        self._on_queued = on_queued
        self._drives = opening.mode == avatar_pb2.TALK_MODE_DRIVE
        self._outgoing = Outgoing(replays=self._drives)
        self._inbox: asyncio.Queue[Item | _End] = asyncio.Queue(_INBOX)
        self._wake = asyncio.Event()  # for the writer
        self._sent = asyncio.Event()
        self._saying: set[asyncio.Task[None]] = set()
        self._voices: dict[int, asyncio.Lock] = {}
        self._hanging_up = False
        self._reports = True  # whether iterating counts as playing
        self._reported_at = 0.0
        self._over: _End | None = None
        self._leaving = False
        self._moving: asyncio.Task[_Connection] | None = None
        self.statistics = avatar_pb2.Statistics()  # the newest

    async def __aenter__(self) -> Self:
        self._clock = asyncio.get_running_loop().time
        connection = _Connection(self._start())
        try:
            self.ready = await connection.open(self._opening, self._on_queued)
        except BaseException:
            connection.cancel()
            raise
        self.spec: StreamSpec = spec_from_proto(self.ready.spec, at="ready.spec")
        self._received = Received(self.spec, self.ready)
        self._begin()
        self._running = asyncio.create_task(self._run(connection))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and not self._hanging_up:
            await self._leave()
        tasks = [*self._saying, *([self._moving] if self._moving else []), self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- What is said ----

    def say(
        self, speech: Speech, *, sample_rate: int | None = None, speaker: int = 0
    ) -> asyncio.Task[None]:
        """Say all of `speech` in the background, after what is being said already.

        An iterator is asked for more as fast as the session takes it. The task ends when all is
        sent; when `speech` cannot be used, the session ends with that error.

        Args:
            sample_rate: Hz of arrays and bytes.
            speaker: which face says it.
        """
        task = asyncio.create_task(self._say(speech, sample_rate, speaker))
        self._saying.add(task)
        task.add_done_callback(self._said)
        return task

    async def push(self, sound: Piece, *, sample_rate: int | None = None, speaker: int = 0) -> None:
        """Send one piece of speech; waits while enough of it is waiting.

        Raises:
            BadInput: it is no mono sound, or of another rate than before.
        """
        self._check_open()
        while self._outgoing.unsent_seconds > _UNSENT_SECONDS and self._over is None:
            self._sent.clear()
            await self._sent.wait()
        self._outgoing.say(piece(sound, sample_rate=sample_rate, speaker=speaker))
        self._wake.set()

    def end_of_speech(self, *, speaker: int = 0) -> None:
        """The utterance is complete: what is left of it need not wait for more."""
        self._outgoing.end(speaker)
        self._wake.set()

    def interrupt(self, *, turn: int = 0) -> None:
        """Stop speaking now; what is not played never comes. 0: the turn that is playing."""
        for task in self._saying:
            task.cancel()
        self._outgoing.interrupt(turn, seen=self._received.turn, now=self._clock())
        self._wake.set()

    def played(self, *, frame: int, sample: int, turn: int = 0) -> None:
        """One past the last frame shown and sample heard, for callers that buffer what comes.

        Without it, what was taken by iterating counts as played.
        """
        self._reports = False
        self._report(avatar_pb2.PlaybackPosition(turn=turn, frame=frame, sample=sample))

    def ask_key_frame(self) -> None:
        """Let decoding begin anew with one of the next frames."""
        self._tell(avatar_pb2.TalkRequest(key_frame=media_pb2.KeyFrameRequest()))

    def change(self, settings: VideoSettings) -> None:
        """Change the encoder, now and after reconnecting."""
        video = VideoFormat.from_proto(self._opening.video, at="video")
        video = VideoFormat(video.form, settings.over(video.settings))
        self._opening.video.CopyFrom(video.to_proto())
        self._tell(avatar_pb2.TalkRequest(settings=settings.to_proto()))

    def send(self, request: avatar_pb2.TalkRequest) -> None:
        """Anything else of the contract, in its turn: text, a tool's result."""
        self._outgoing.tell(request)
        self._wake.set()

    def hang_up(self) -> None:
        """Say nothing more: what `say` was given is played to its end, then iterating ends."""
        self._hanging_up = True
        self._wake.set()

    # ---- What comes ----

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        item = await self.take()
        if item is None:
            raise StopAsyncIteration
        return item

    async def take(self) -> Item | None:
        """The next item; None when the session has ended well.

        Raises:
            TalkingMachinesError: why the session ended, other than well.
        """
        if self._over is None:
            item = await self._inbox.get()
            if not isinstance(item, _End):
                self._taken(item)
                return item
            self._over = item
        if self._over.error is not None:
            raise self._over.error
        return None

    def seconds(self, item: VideoFrame | Pcm) -> float:
        """Presentation time of `item` on the session's media clock."""
        if isinstance(item, Pcm):
            return item.first_sample / item.sample_rate
        return self.spec.frame_seconds(item.frame)

    # ---- The caller's side ----

    def _check_open(self) -> None:
        if self._over is not None:
            raise self._over.error or Unavailable("the session is over", retry_after=0.0)

    def _taken(self, item: Item) -> None:
        now = self._clock()
        media = isinstance(item, VideoFrame | Pcm)
        if media and self._reports and now - self._reported_at > _REPORT_SECONDS:
            self._reported_at = now
            self._report(self._received.position)

    def _report(self, position: avatar_pb2.PlaybackPosition) -> None:
        self._tell(avatar_pb2.TalkRequest(playback=position))

    def _tell(self, request: avatar_pb2.TalkRequest) -> None:
        self._outgoing.control(request)
        self._wake.set()

    async def _say(self, speech: Speech, sample_rate: int | None, speaker: int) -> None:
        async with self._voices.setdefault(speaker, asyncio.Lock()):
            async for part in pieces(speech, sample_rate=sample_rate, speaker=speaker):
                await self.push(part, speaker=speaker)
            self.end_of_speech(speaker=speaker)

    def _said(self, task: asyncio.Task[None]) -> None:
        self._saying.discard(task)
        self._wake.set()
        error = None if task.cancelled() else task.exception()
        if error is not None and self._over is None:
            self._over = _End(error)
            with suppress(asyncio.QueueFull):  # then nobody is waiting for an item
                self._inbox.put_nowait(self._over)

    # ---- The wire's side ----

    def _begin(self) -> None:
        """A connection's Ready is in `ready`."""
        self._opening.resume_token = self.ready.resume_token
        if self._drives:
            self._outgoing.limit = duration.from_proto(self.ready.max_buffered_speech)

    async def _run(self, connection: _Connection) -> None:
        """Hold the session over as many connections as it takes."""
        error: BaseException | None = None
        held: _Connection | None = connection
        try:
            while held is not None:
                held = await self._hold(held)
        except TalkingMachinesError as ended:
            error = ended
        await self._put(_End(error))

    async def _hold(self, connection: _Connection) -> _Connection | None:
        """Use one connection to its end; returns the one that follows, None when all is over."""
        writing = asyncio.create_task(self._write(connection))
        try:
            async for response in connection:
                for item in self._items(response, connection):
                    await self._put(item)
        except TalkingMachinesError as error:
            if not self._goes_on(error):
                raise
            lost = error
        except asyncio.CancelledError:
            if not self._has_moved() or _cancelled():
                raise
            lost = Fenced("we have moved")
        else:
            return None
        finally:
            writing.cancel()
            connection.cancel()
        return await self._replaced(lost)

    async def _write(self, connection: _Connection) -> None:
        with suppress(TalkingMachinesError):  # reading tells why
            while self._saying or not (self._hanging_up and self._outgoing.empty):
                request = self._outgoing.next(self._clock())
                if request is None:
                    await self._wake.wait()
                    self._wake.clear()
                    continue
                await connection.write(request)
                self._sent.set()
                await asyncio.sleep(_MESSAGE_GAP_SECONDS)
            await connection.done_writing()

    def _items(self, response: avatar_pb2.TalkResponse, connection: _Connection) -> list[Item]:
        """What the caller gets of a message."""
        match response.WhichOneof("message"):
            case "frame":
                return [*self._received.frame(VideoFrame.from_proto(response.frame, at="frame"))]
            case "speech":
                return [*self._received.sound(Pcm.from_proto(response.speech, at="speech"))]
            case "going_away":
                self._move(connection)
                return []
            case "turn_started" if not self._received.news("start", response.turn_started.turn):
                return []
            case "turn_ended" if not self._received.news("end", response.turn_ended.turn):
                return []
            case "statistics":
                self.statistics = response.statistics
                buffered = duration.from_proto(response.statistics.buffered_speech)
                self._outgoing.reported(buffered, self._clock())
                self._wake.set()
            case "interrupted":
                self._received.interrupted(response.interrupted)
                self._outgoing.interrupted()
            case "ready" | "queued" | None:
                return []
        name = response.WhichOneof("message")
        assert name is not None
        return [getattr(response, name)]

    def _goes_on(self, error: TalkingMachinesError) -> bool:
        """Whether the session may be there still."""
        if isinstance(error, Fenced):  # by ourselves, when we are moving
            return self._moving is not None
        return isinstance(error, Unavailable | EngineFailure | Internal)

    def _move(self, connection: _Connection) -> None:
        """Make a new connection while this one still works."""
        if self._moving is None:

            def leave(_: asyncio.Task[_Connection]) -> None:
                if self._has_moved():
                    connection.cancel()

            self._moving = asyncio.create_task(self._reconnect())
            self._moving.add_done_callback(leave)

    def _has_moved(self) -> bool:
        task = self._moving
        return bool(task and task.done() and not task.cancelled() and not task.exception())

    async def _replaced(self, error: TalkingMachinesError) -> _Connection:
        """The connection that goes on where the last one ended."""
        began = self._clock()
        moved = self._has_moved()
        if not moved:
            await self._put(Reconnecting(error))
        self._moving = self._moving or asyncio.create_task(self._reconnect())
        try:
            connection = await self._moving
        finally:
            self._moving = None
        self.ready = connection.ready
        held = {position.speaker: position.sample for position in self.ready.speech}
        self._begin()
        self._outgoing.resume(held, turn=self.ready.turn, now=self._clock())
        if not moved:
            await self._put(Resumed(self._clock() - began))
        return connection

    async def _reconnect(self) -> _Connection:
        """A new connection of this session, tried for as long as the session is kept.

        Raises:
            TalkingMachinesError: it cannot be resumed.
        """
        give_up = self._clock() + duration.from_proto(self.ready.resume_window)
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._opening.playback.CopyFrom(self._received.position)
            connection = _Connection(self._start())
            try:
                await connection.open(self._opening, self._on_queued)
                return connection
            except (Unavailable, NoCapacity):
                connection.cancel()
                if self._clock() + pause > give_up:
                    raise
            except BaseException:
                connection.cancel()
                raise
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _put(self, item: Item | _End) -> None:
        if not self._leaving:
            await self._inbox.put(item)

    async def _leave(self) -> None:
        """Hang up without waiting for what is still to be played."""
        self.interrupt()
        self.hang_up()
        self._leaving = True
        while not self._inbox.empty():  # whoever waits for room in it goes on
            self._inbox.get_nowait()
        await asyncio.wait({self._running}, timeout=_FAREWELL_SECONDS)


class _Connection:
    """One stream of a session: opened, read and written."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.ready = avatar_pb2.Ready()

    async def open(
        self, opening: avatar_pb2.Open, on_queued: Callable[[avatar_pb2.Queued], None]
    ) -> avatar_pb2.Ready:
        """Ask for the session; returns once it runs.

        Raises:
            TalkingMachinesError: why it was refused.
        """
        await self._call.write(avatar_pb2.TalkRequest(open=opening))
        async for response in self._call:
            match response.WhichOneof("message"):
                case "ready":
                    self.ready = response.ready
                    return self.ready
                case "queued":
                    on_queued(response.queued)
        raise Unavailable("the session ended before it began", retry_after=1.0)

    async def __aiter__(self) -> AsyncIterator[avatar_pb2.TalkResponse]:
        while (response := await self._call.read()) is not grpc.aio.EOF:
            yield response

    async def write(self, request: avatar_pb2.TalkRequest) -> None:
        await self._call.write(request)

    async def done_writing(self) -> None:
        await self._call.done_writing()

    def cancel(self) -> None:
        self._call.cancel()


def _cancelled() -> bool:
    """Whether somebody wants the running task to end; a call that was cancelled looks the same."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
