"""A call over WebRTC: one more client of a session, that lives in the gateway.

On the path: browser → webrtc → **browser call** → calls → session, and back by broadcast. It says
to the session what a gRPC client would say, and has its limits, its queue and its resume tokens.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from hmac import compare_digest
from typing import assert_never
from uuid import uuid4

import structlog
from av.audio.frame import AudioFrame

from services.gateway import bodies
from services.gateway.adaptation import Adaptation, Rates
from services.gateway.auth import Caller
from services.gateway.broadcast import Broadcast
from services.gateway.calls import Calls, final
from services.gateway.microphone import Microphone
from services.gateway.outbox import Event, Outbox, Room
from services.gateway.webrtc import Peer
from services.runtime.drain import Drain
from services.runtime.metrics import GatewayMetrics, Transport, WebRtcEnd, WebRtcRole
from services.runtime.rpc import domain_error
from talkingmachines import duration
from talkingmachines.errors import (
    Fenced,
    Internal,
    NotFound,
    QuotaExceeded,
    TalkingMachinesError,
    Unavailable,
)
from talkingmachines.media import Pcm, spec_from_proto
from talkingmachines.picture import Codec, VideoFrame, VideoSettings
from talkingmachines.v1 import avatar_pb2, media_pb2

_log = structlog.stdlib.get_logger(__name__)

_KEY_FRAME_SECONDS = 1.0  # between those that are asked for, whoever asks
_TICK_SECONDS = 0.1
_TICKS_A_REPORT = 10
_LEAVE_SECONDS = 2.0  # for a session to be handed to its client's next connection
_HANG_UP_SECONDS = 10.0  # for the session to end by itself
_MOST_REQUESTS = 200  # that a session has not taken: seconds of voice

_Request = avatar_pb2.TalkRequest


@dataclass(frozen=True, slots=True)
class Desk:
    """What every call over WebRTC needs."""

    calls: Calls
    drain: Drain
    metrics: GatewayMetrics
    room: Room
    rates: Rates
    viewers: int
    connect_seconds: float


class BrowserCall:
    """One call, from our answer to its end.

    Args:
        opening: the session's first message.
        peer: its own connection, which the client was answered with.
    """

    def __init__(self, desk: Desk, caller: Caller, opening: avatar_pb2.Open, peer: Peer) -> None:
        self.id = secrets.token_urlsafe(18)
        self.caller = caller
        self._desk = desk
        self._opening = opening
        self.peer = peer
        self._clock = asyncio.get_running_loop().time
        self._outbox = Outbox(desk.room)
        self._requests: asyncio.Queue[_Request | None] = asyncio.Queue(_MOST_REQUESTS)
        self._broadcast: Broadcast | None = None  # once Ready
        self._rate = 1  # of the session's media clock
        self._token = b""
        self._watching: dict[str, Peer] = {}
        self._lent: Peer | None = None  # a microphone that is not the peer's own
        self._microphone = Microphone()
        self._adaptation = Adaptation(desk.rates, self._clock())
        self._asked_key_at = float("-inf")
        self._asking_key: asyncio.TimerHandle | None = None
        self._quality: bodies.Json = {}
        self._lost_before = self._sent_before = 0
        self._sent_bits = 0.0  # a second, of late
        self._bytes_before = 0
        self._hung_up = False
        self._over = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        peer.on_message = self._told
        peer.on_sound = lambda frame: self._heard(frame, peer)
        peer.on_key_frame = self.ask_key_frame
        peer.on_bitrate = self._estimated

    @property
    def codec(self) -> Codec:
        """Of its pictures."""
        return self.peer.codec or Codec.VP8

    # ---- Its life ----

    async def run(self) -> None:
        """Hold the call until either side ends it. Never fails: its client is told what did."""
        ended = WebRtcEnd.NEVER_CONNECTED
        try:
            if await self._connected():
                with self._desk.drain.running():
                    ended = await self._hold()
        finally:
            self._over.set()
            self._desk.metrics.webrtc_ends.labels(ended).inc()
            if self._asking_key is not None:
                self._asking_key.cancel()
            peers = [self.peer, *self._watching.values(), *([self._lent] if self._lent else [])]
            await asyncio.gather(*(peer.close() for peer in peers))

    def hang_up(self) -> None:
        """The conversation is over; it cannot be resumed."""
        if self._hung_up:
            return
        self._send(_Request(interrupt=avatar_pb2.Interrupt()))  # what is left is not played
        self._hung_up = True
        while self._requests.full():
            self._requests.get_nowait()
        self._requests.put_nowait(None)
        self._tell({"type": "ended"})
        if self._running is not None:
            asyncio.get_running_loop().call_later(_HANG_UP_SECONDS, self._running.cancel)
        else:
            self.peer.gone.set()

    def resumed_by(self, token: bytes) -> bool:
        """Whether `token` is this call's: its client is back, on another connection."""
        return bool(self._token) and compare_digest(token, self._token)

    async def leave(self) -> None:
        """Give the session up to its client's next connection; it goes on where this one was."""
        self.peer.gone.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._over.wait()

    async def _connected(self) -> bool:
        began = self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._desk.connect_seconds):
                await _either(self.peer.ready, self.peer.gone)
        if not self.peer.ready.is_set() or self.peer.gone.is_set():
            return False
        seconds = self._desk.metrics.webrtc_connect_seconds.labels(WebRtcRole.CALL)
        seconds.observe(self._clock() - began)
        return True

    async def _hold(self) -> WebRtcEnd:
        """Hold the session; returns how the call ended."""
        holding = self._desk.calls.hold(self.caller, self._sent(), self._outbox)
        call = self._running = asyncio.create_task(holding)
        call.add_done_callback(lambda _: self._outbox.close())
        beside = [asyncio.create_task(work) for work in (self._watch(call), self._tick())]
        gauges = [
            self._desk.metrics.webrtc_connections.labels(WebRtcRole.CALL),
            self._desk.metrics.viewers.labels(Transport.WEBRTC),
        ]
        for gauge in gauges:
            gauge.inc()
        try:
            return await self._show(call)
        finally:
            for gauge in gauges:
                gauge.dec()
            for task in (call, *beside):
                task.cancel()
            await asyncio.gather(call, *beside, return_exceptions=True)

    async def _show(self, call: asyncio.Task[None]) -> WebRtcEnd:
        try:
            async with asyncio.timeout(None) as limit:
                with self._desk.drain.limited(limit):
                    async with asyncio.TaskGroup() as tasks:
                        async for item in self._outbox:
                            self._take(item, tasks)
                        self._stop_broadcast()
                    await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return WebRtcEnd.HUNG_UP if self._hung_up else WebRtcEnd.LOST
        except TimeoutError:
            return self._failed(Unavailable("this gateway is ending", retry_after=1.0))
        except Exception as error:  # noqa: BLE001  the boundary of a session: it alone ends
            return self._failed(_domain(error))
        if not self._hung_up:
            self._tell({"type": "ended"})
        return WebRtcEnd.HUNG_UP

    def _failed(self, error: TalkingMachinesError) -> WebRtcEnd:
        ready = bool(self._token)
        gone = final(error) or isinstance(error, Fenced | NotFound)
        resumable = not gone and (ready or bool(self._opening.resume_token))
        self._tell({"type": "error", "resumable": resumable} | bodies.problem(error))
        return WebRtcEnd.FAILED if ready else WebRtcEnd.REFUSED

    async def _watch(self, call: asyncio.Task[None]) -> None:
        """End a call whose connection is gone: its session can be resumed for a while."""
        await self.peer.gone.wait()
        if not self._hung_up:
            call.cancel()

    # ---- What the session sends ----

    def _take(self, item: VideoFrame | Pcm | Event, tasks: asyncio.TaskGroup) -> None:
        match item:
            case VideoFrame():
                if self._broadcast is not None:
                    self._broadcast.frame(item)
            case Pcm():
                if self._broadcast is not None:
                    self._broadcast.say(item)
            case _ if item.HasField("ready"):
                self._begin(item.ready, tasks)
            case _:
                self._pass_on(item)

    def _begin(self, ready: avatar_pb2.Ready, tasks: asyncio.TaskGroup) -> None:
        spec = spec_from_proto(ready.spec, at="ready.spec")
        voice, metrics = self._desk.rates.voice, self._desk.metrics
        broadcast = Broadcast(spec, voice_bitrate=voice, metrics=metrics)
        self._outbox.on_held = broadcast.held
        for peer in (self.peer, *self._watching.values()):
            broadcast.join(peer)
        self._sending = tasks.create_task(broadcast.run())
        self._broadcast, self._rate = broadcast, spec.sample_rate
        self._token = ready.resume_token
        self._tell(bodies.ready(ready))

    def _stop_broadcast(self) -> None:
        if self._broadcast is not None:
            self._sending.cancel()

    def _pass_on(self, event: Event) -> None:
        told: bodies.Json
        match event.WhichOneof("message"):
            case "queued":
                told = bodies.queued(event.queued)
            case "transcript":
                words = event.transcript
                delay = self._delay(words.first_sample)
                told = bodies.transcript(words, rate=self._rate, delay=delay)
            case "turn_started":
                began = event.turn_started
                told = self._at("turn_started", began.turn, began.first_sample)
                told["speaker"] = began.speaker
            case "turn_ended":
                told = self._at("turn_ended", event.turn_ended.turn, event.turn_ended.end_sample)
            case "interrupted":
                if self._broadcast is not None:
                    self._broadcast.interrupt()
                cut = event.interrupted
                told = {"type": "interrupted", "turn": cut.turn, "time": cut.sample / self._rate}
            case "user_speech":
                told = {"type": "user_speech", "speaking": event.user_speech.speaking}
            case "statistics":
                told = bodies.statistics(event.statistics) | self._quality
            case "going_away":
                left = duration.from_proto(event.going_away.time_left)
                told = {"type": "going_away", "time_left": left}
            case "notice":
                told = bodies.notice(event.notice)
            case "tool_call":
                told = bodies.tool_call(event.tool_call)
            case _:
                return
        self._tell(told)

    def _at(self, kind: str, turn: int, sample: int) -> bodies.Json:
        time, delay = sample / self._rate, self._delay(sample)
        return {"type": kind, "turn": turn, "time": time, "delay": delay}

    def _delay(self, sample: int) -> float:
        return 0.0 if self._broadcast is None else round(self._broadcast.delay(sample), 3)

    def _tell(self, message: bodies.Json) -> None:
        self.peer.tell(json.dumps(message, ensure_ascii=False, separators=(",", ":")))

    # ---- What the client says ----

    async def _sent(self) -> AsyncIterator[_Request]:
        yield _Request(open=self._opening)
        while (request := await self._requests.get()) is not None:
            yield request

    def _send(self, request: _Request) -> None:
        """To the session, once it runs; what it does not take in time is gone."""
        if self._broadcast is not None and not self._hung_up:
            with suppress(asyncio.QueueFull):
                self._requests.put_nowait(request)

    def _told(self, text: str | bytes) -> None:
        try:
            message = bodies.read_message(text)
            match message:
                case bodies.HangUp():
                    self.hang_up()
                case bodies.Microphone(on=on):
                    self._microphone.on = on
                case (
                    bodies.Interrupt() | bodies.Text() | bodies.EndOfSpeech() | bodies.ToolResult()
                ):
                    self._send(bodies.to_request(message))
                case _:
                    assert_never(message)
        except TalkingMachinesError as error:
            self._failed(error)
            self.peer.gone.set()

    def _heard(self, frame: AudioFrame, peer: Peer) -> None:
        if peer is (self._lent or self.peer):
            self._hear(self._microphone.heard(frame, self._clock()))

    def _hear(self, sounds: list[Pcm]) -> None:
        for pcm in sounds:
            message = media_pb2.Pcm(samples=pcm.samples, sample_rate=pcm.sample_rate)
            self._send(_Request(audio=message))

    def ask_key_frame(self) -> None:
        """Somebody cannot decode what they have: the next frame is to stand alone, soon."""
        self._desk.metrics.webrtc_key_frame_requests.inc()
        if self._asking_key is None:
            wait = max(0.0, self._asked_key_at + _KEY_FRAME_SECONDS - self._clock())
            self._asking_key = asyncio.get_running_loop().call_later(wait, self._ask_key_frame)

    def _ask_key_frame(self) -> None:
        self._asking_key = None
        self._asked_key_at = self._clock()
        self._send(_Request(key_frame=media_pb2.KeyFrameRequest()))

    def _estimated(self, bits: int) -> None:
        if self._adaptation.estimated(bits, sent=self._sent_bits, now=self._clock()):
            self._desk.metrics.webrtc_bitrate_changes.inc()
            settings = VideoSettings(bitrate=self._adaptation.rate)
            self._send(_Request(settings=settings.to_proto()))

    # ---- Now and then ----

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._hear(self._microphone.stalled(self._clock()))
            ticks += 1
            if ticks % _TICKS_A_REPORT == 0 and self._broadcast is not None:
                await self._report(self._broadcast)

    async def _report(self, broadcast: Broadcast) -> None:
        seconds = _TICK_SECONDS * _TICKS_A_REPORT
        self._sent_bits = 8 * (broadcast.sent_bytes - self._bytes_before) / seconds
        self._bytes_before = broadcast.sent_bytes
        trip, lost, sent = await self.peer.quality()
        metrics = self._desk.metrics
        metrics.webrtc_packets.inc(max(0, sent - self._sent_before))
        metrics.webrtc_packets_lost.inc(max(0, lost - self._lost_before))
        self._lost_before, self._sent_before = max(lost, self._lost_before), sent
        self._quality = {
            "bitrate": self._adaptation.rate,
            "key_frames": broadcast.key_frames,
            "packets_lost": lost,
            "viewers": len(self._watching),
        }
        if trip is not None:
            metrics.webrtc_round_trip.observe(trip)
            self._quality["round_trip"] = round(trip, 4)

    # ---- Others who watch, and other microphones ----

    def check_room(self) -> None:
        """Whether one more may watch.

        Raises:
            QuotaExceeded: the call has all the viewers it may have.
        """
        if len(self._watching) >= self._desk.viewers:
            raise QuotaExceeded("viewers of a call", limit=str(self._desk.viewers))

    def watch(self, peer: Peer) -> str:
        """Let a connection watch, as long as it lasts; returns its name."""
        name = secrets.token_urlsafe(12)
        self._watching[name] = peer
        peer.on_key_frame = self.ask_key_frame
        if self._broadcast is not None:
            self._broadcast.join(peer)
        return name

    def listen(self, peer: Peer) -> str:
        """Hear another microphone instead of the client's own; returns its name.

        Raises:
            QuotaExceeded: there is one already.
        """
        if self._lent is not None:
            raise QuotaExceeded("microphones of a call besides its own", limit="1")
        self._lent = peer
        self._microphone.changed()
        peer.on_sound = lambda frame: self._heard(frame, peer)
        return "1"

    def other(self, name: str, role: WebRtcRole) -> Peer | None:
        """A viewer, or the microphone that is not the client's own."""
        return self._watching.get(name) if role is WebRtcRole.VIEWER else self._lent

    async def attend(self, name: str, peer: Peer, role: WebRtcRole) -> None:
        """A connection's life, from our answer until it, or the call's own, is gone."""
        began = self._clock()
        gauge = self._desk.metrics.webrtc_connections.labels(role)
        gauge.inc()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._desk.connect_seconds):
                    await _either(peer.ready, peer.gone)
            if peer.ready.is_set():
                seconds = self._desk.metrics.webrtc_connect_seconds.labels(role)
                seconds.observe(self._clock() - began)
                if role is WebRtcRole.VIEWER:
                    self.ask_key_frame()
                await _either(peer.gone, self.peer.gone)
        finally:
            gauge.dec()
            self._watching.pop(name, None)
            if self._broadcast is not None:
                self._broadcast.leave(peer)
            if peer is self._lent:
                self._lent = None
                self._microphone.changed()
            await peer.close()


async def _either(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _domain(error: Exception) -> TalkingMachinesError:
    """What a client is told; what is ours to mend is in the log."""
    domain = domain_error(error)
    if domain is None:
        fault = uuid4().hex[:12]
        _log.error("fault in a call over WebRTC", fault=fault, exc_info=error)
        domain = Internal(f"internal fault {fault}")
    return domain
