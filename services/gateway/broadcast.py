"""One session's media to all who watch: encoded once, timed once, dropped at once.

On the path: outbox → **broadcast** → webrtc. Pictures come encoded from the VAE; sound is encoded
here, as it is sent. Every viewer gets the same packets and cuts them for its own connection. Each
packet leaves at its RTP time, as it passes on one clock, plus the length of one piece of sound: so
pictures and sound of the same time leave at the same time, and receivers see no skew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import av

from services.gateway.opus import Voice
from services.gateway.timeline import Timeline
from services.gateway.wake import Wake
from services.runtime.metrics import DropReason, GatewayMetrics, Transport
from talkingmachines.media import Pcm
from talkingmachines.picture import EncodedPicture, VideoFrame
from talkingmachines.spec import StreamSpec

PICTURE_RATE = 90_000  # of RTP timestamps, whatever the codec

_LAG = 0.02  # seconds: a piece of sound is complete when it ends
_LATE = 0.06  # beyond its time, after which an incomplete piece is sent as it is
_INSTANT = 1e-3


class Viewer(Protocol):
    """A connection that shows the session."""

    def picture(self, packet: av.Packet[Any], *, key: bool) -> bool:
        """Take an encoded picture; False when it was dropped."""

    def sound(self, packet: av.Packet[Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Picture:
    at: Fraction  # RTP seconds
    picture: EncodedPicture


class Broadcast:
    """One session's media, from Ready on; `run` sends them."""

    def __init__(self, spec: StreamSpec, *, voice_bitrate: int, metrics: GatewayMetrics) -> None:
        self._spec = spec
        self._metrics = metrics
        self._clock = asyncio.get_running_loop().time
        self._wake = Wake()
        self._timeline = Timeline(spec)
        self._voice = Voice(spec.sample_rate, voice_bitrate, metrics)
        self._pictures: deque[_Picture] = deque()
        self._origin: float | None = None  # loop time of RTP second 0
        self._released = 0  # one past the last sample that came
        self._viewers: list[Viewer] = []
        self.key_frames = 0
        self.sent_bytes = 0  # of pictures, to one viewer

    # ---- Who watches ----

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    def join(self, viewer: Viewer) -> None:
        """Show the session to `viewer`, from the next key frame on, which is to be asked for."""
        self._viewers.append(viewer)

    def leave(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)

    # ---- What the session sends ----

    def held(self, frame: int, seconds: float) -> None:
        """The session's clock stood still before `frame`."""
        if self._origin is not None:
            self._timeline.held(frame, seconds)

    def frame(self, frame: VideoFrame) -> None:
        assert isinstance(frame.picture, EncodedPicture), "asked for encoded"
        at = self._timeline.frame(frame.frame)
        if self._origin is None:
            self._origin = self._clock() - float(at)
        self._pictures.append(_Picture(at, frame.picture))
        self._wake.give()

    def say(self, pcm: Pcm) -> None:
        """Sound of the last frame given."""
        self._voice.say(pcm, self._timeline.sample(pcm.first_sample))
        self._released = pcm.end_sample
        self._wake.give()

    def interrupt(self) -> None:
        """Nothing that was said and not sent is heard."""
        self._voice.silence()

    def delay(self, sample: int) -> float:
        """Seconds until the sample is sent; 0 when it was."""
        ahead = (sample - self._released) / self._spec.sample_rate
        return max(0.0, ahead + _LAG) if sample else 0.0

    # ---- Sending ----

    async def run(self) -> None:
        """Send what is due, as long as the session lasts."""
        while True:
            await self._wake.wait(self._send_due())

    def _send_due(self) -> float | None:
        """Send all that is due; returns the seconds until something is, None: nothing waits."""
        while (wait := self._wait()) is not None and wait <= _INSTANT:
            self._send_next()
        return wait

    def _wait(self) -> float | None:
        times = [time for time in (self._picture_due(), self._sound_due()) if time is not None]
        return min(times) - self._clock() if times else None

    def _send_next(self) -> None:
        picture, sound = self._picture_due(), self._sound_due()
        if sound is None or (picture is not None and picture <= sound):
            self._send_picture(self._pictures.popleft())
        else:
            packet = self._voice.send()
            for viewer in self._viewers:
                viewer.sound(packet)

    def _picture_due(self) -> float | None:
        return self._due(self._pictures[0].at) if self._pictures else None

    def _sound_due(self) -> float | None:
        piece = self._voice.next
        if piece is None:
            return None
        incomplete = not (piece.complete or self._voice.followed)
        return self._due(self._voice.due(piece)) + incomplete * _LATE

    def _due(self, at: Fraction) -> float:
        return (self._origin or 0.0) + float(at) + _LAG

    def _send_picture(self, waiting: _Picture) -> None:
        picture = waiting.picture
        packet = av.Packet(picture.payload)
        packet.pts = round(waiting.at * PICTURE_RATE)
        packet.time_base = Fraction(1, PICTURE_RATE)
        self.key_frames += picture.key_frame
        self._metrics.webrtc_key_frames.inc(int(picture.key_frame))
        self.sent_bytes += len(picture.payload)
        for viewer in self._viewers:
            if viewer.picture(packet, key=picture.key_frame):
                self._metrics.frames.labels(Transport.WEBRTC).inc()
            else:
                self._metrics.frames_dropped.labels(DropReason.SLOW_VIEWER).inc()
