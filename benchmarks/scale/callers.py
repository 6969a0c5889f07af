"""Callers as the client library is: they resume with their token, and move when told to.

A caller speaks through its character three seconds of every nine. It plays on a clock of its own,
a little behind what comes, and counts where the picture stood still.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from benchmarks.scale.engines import SPEC
from benchmarks.scale.fleet import AVATAR, Fleet, Gateway
from services.gateway.outbox import Outbox
from talkingmachines import duration
from talkingmachines.errors import (
    EngineFailure,
    Fenced,
    Internal,
    NoCapacity,
    TalkingMachinesError,
    Unavailable,
)
from talkingmachines.picture import Codec, VideoFormat, VideoFrame
from talkingmachines.v1 import avatar_pb2, media_pb2

BUFFER_SECONDS = 0.3  # that a caller plays behind what comes
_VISIBLE_SECONDS = 0.02  # what is later than that is a stall
_NOTICE_SECONDS = (20.0, 30.0)  # of gRPC's pings, until a silent gateway is given up
_CONNECT_SECONDS = 2.0  # until a machine that is not there is given up
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # between attempts, as the client library's
_SILENCE_SECONDS, _SPEECH_SECONDS = 6.0, 3.0
_SPEECH = media_pb2.Pcm(
    samples=bytes(2 * int(_SPEECH_SECONDS * SPEC.sample_rate)), sample_rate=SPEC.sample_rate
)
_AUDIO = avatar_pb2.TalkRequest(audio=_SPEECH)
_END = avatar_pb2.TalkRequest(end_of_speech=avatar_pb2.EndOfSpeech())


@dataclass
class Fate:
    """What became of one caller."""

    came: float
    queued: bool = False
    ready: float | None = None  # when it was let in
    first_frame: float | None = None
    over: float | None = None
    ended: str = ""  # why, other than well
    resumes: int = 0
    stalls: list[tuple[float, float]] = field(default_factory=list)  # when, seconds

    @property
    def stalled(self) -> float:
        return sum(seconds for _, seconds in self.stalls)


class Connection:
    """One stream of a call."""

    def __init__(self, caller: Caller, gateway: Gateway, opening: avatar_pb2.Open) -> None:
        loop = asyncio.get_running_loop()
        self._caller, self._gateway = caller, gateway
        self.ready: asyncio.Future[avatar_pb2.Ready] = loop.create_future()
        self.over: asyncio.Future[BaseException | None] = loop.create_future()
        self._requests: asyncio.Queue[avatar_pb2.TalkRequest | None] = asyncio.Queue()
        self.send(avatar_pb2.TalkRequest(open=opening))
        if not gateway.up:
            loop.call_later(_CONNECT_SECONDS, self._finish, Unavailable("gone", retry_after=0.0))
            return
        if gateway.drain.started.is_set():
            self._finish(Unavailable("draining", retry_after=0.0))
            return
        self._outbox = Outbox(gateway.room)
        gateway.connections.add(self)
        hold = gateway.calls.hold(caller.fleet.caller, self._sent(), self._outbox)
        self._holding = asyncio.create_task(hold)
        self._holding.add_done_callback(lambda _: self._outbox.close())
        self._reading = asyncio.create_task(self._read())

    def send(self, request: avatar_pb2.TalkRequest | None) -> None:
        self._requests.put_nowait(request)

    def leave(self) -> None:
        """The client has another connection now."""
        if self in self._gateway.connections:
            self._gateway.connections.discard(self)
            self._holding.cancel()

    def lose(self, *, silent: bool) -> None:
        """The gateway is gone."""
        self._gateway.connections.discard(self)
        self._reading.cancel()
        self._holding.cancel()
        notice = random.uniform(*_NOTICE_SECONDS) if silent else 0.0
        gone = Unavailable("the connection broke", retry_after=0.0)
        asyncio.get_running_loop().call_later(notice, self._finish, gone)

    async def _sent(self) -> AsyncIterator[avatar_pb2.TalkRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        async for item in self._outbox:
            if isinstance(item, VideoFrame):
                self._caller.frame(item.frame)
                continue
            if not isinstance(item, avatar_pb2.TalkResponse):
                continue
            match item.WhichOneof("message"):
                case "ready":
                    self.ready.set_result(item.ready)
                case "queued":
                    self._caller.fate.queued = True
                case "going_away":
                    self._caller.going_away()
        self._gateway.connections.discard(self)
        cancelled = self._holding.cancelled()
        self._finish(
            Unavailable("cut", retry_after=0.0) if cancelled else self._holding.exception()
        )

    def _finish(self, error: BaseException | None) -> None:
        if not self.over.done():
            self.over.set_result(error)
        if not self.ready.done():
            self.ready.set_exception(error or Unavailable("it ended", retry_after=0.0))
            self.ready.exception()  # told to whoever waits for it; if nobody does, that is well


class Caller:
    """One call from its first attempt to its end."""

    def __init__(self, fleet: Fleet, *, seconds: float, patience: float = 0.0) -> None:
        self.fleet = fleet
        self._loop = asyncio.get_running_loop()
        self._seconds, self._patience = seconds, patience
        self._token = b""
        self._next_frame = 0
        self._base: float | None = None  # when frame 0 was shown
        self._hangs_up_at: float | None = None
        self._moving: asyncio.Task[Connection] | None = None
        self._connection: Connection | None = None
        self.fate = Fate(self._loop.time())

    async def run(self) -> Fate:
        speaking: asyncio.Task[None] | None = None
        try:
            connection: Connection | None = await self._open()
            self.fate.ready = self._loop.time()
            self._hangs_up_at = self.fate.ready + self._seconds
            speaking = asyncio.create_task(self._speak())
            while connection is not None:
                connection = await self._hold(connection)
        except TalkingMachinesError as error:
            self.fate.ended = type(error).__name__
        finally:
            self.fate.over = self._loop.time()
            if speaking is not None:
                speaking.cancel()
        return self.fate

    def frame(self, number: int) -> None:
        """A picture came; ones that were shown are not shown again."""
        if number < self._next_frame:
            return
        now, shown = self._loop.time(), number / SPEC.fps
        self._next_frame = number + 1
        if self._base is None:
            self.fate.first_frame = now
            self._base = now + BUFFER_SECONDS - shown
        late = now - (self._base + shown)
        if late > _VISIBLE_SECONDS:
            self._base += late
            self.fate.stalls.append((now, late))

    def going_away(self) -> None:
        """Make another connection while this one still works."""
        if self._moving is None:
            self._moving = asyncio.create_task(self._reconnect())
            self._moving.add_done_callback(self._moved)

    def _moved(self, task: asyncio.Task[Connection]) -> None:
        if not task.cancelled() and task.exception() is None and self._connection is not None:
            self._connection.leave()

    async def _open(self) -> Connection:
        opening = avatar_pb2.Open(
            avatar_id=AVATAR,
            mode=avatar_pb2.TALK_MODE_DRIVE,
            video=VideoFormat(Codec.JPEG).to_proto(),
            max_queue_time=duration.to_proto(self._patience),
        )
        connection = Connection(self, self.fleet.pick(), opening)
        self._token = (await connection.ready).resume_token
        return connection

    async def _hold(self, connection: Connection) -> Connection | None:
        """Stay on one connection to its end; the one that follows, None when all is over."""
        self._connection = connection
        if self._hangs_up_at is not None and self._loop.time() >= self._hangs_up_at:
            connection.send(None)
        error = await connection.over
        if error is None:
            return None
        moved = self._moving is not None and self._moving.done()
        if not isinstance(error, Unavailable | EngineFailure | Internal) and not (
            isinstance(error, Fenced) and self._moving is not None
        ):
            raise error
        self.fate.resumes += not moved
        moving, self._moving = self._moving or asyncio.create_task(self._reconnect()), None
        return await moving

    async def _reconnect(self) -> Connection:
        give_up, pause = self._loop.time() + 30.0, _FIRST_PAUSE
        while True:
            opening = avatar_pb2.Open(
                resume_token=self._token,
                video=VideoFormat(Codec.JPEG).to_proto(),
                playback=avatar_pb2.PlaybackPosition(
                    frame=self._next_frame, sample=SPEC.sample_of_frame(self._next_frame)
                ),
            )
            connection = Connection(self, self.fleet.pick(), opening)
            try:
                self._token = (await connection.ready).resume_token
                return connection
            except (Unavailable, NoCapacity):
                if self._loop.time() + pause > give_up:
                    raise
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _speak(self) -> None:
        """Say something now and then, and hang up at last."""
        assert self._hangs_up_at is not None
        await asyncio.sleep(min(random.uniform(0, 9), self._seconds))
        while (left := self._hangs_up_at - self._loop.time()) > 0:
            if self._connection is not None:
                self._connection.send(_AUDIO)
                self._connection.send(_END)
            await asyncio.sleep(min(_SILENCE_SECONDS + _SPEECH_SECONDS, left))
        if self._connection is not None:
            self._connection.send(None)
