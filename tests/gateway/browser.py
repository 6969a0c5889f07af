"""A browser without a screen: aiortc as the other end of a call, and plain HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import aiohttp
import numpy as np
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame, VideoFrame
from numpy.typing import NDArray

from tests.gateway.film import number_of

PATIENCE = 40.0  # seconds; a call takes one or two where nothing else runs
MICROPHONE_RATE = 48_000
_PIECE = MICROPHONE_RATE // 50


class Voice(MediaStreamTrack):
    """A microphone: silence, and what the user says."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._speech = np.zeros(0, np.int16)
        self._sent = 0
        self._began: float | None = None

    def speak(self, seconds: float, *, seed: int = 1) -> None:
        noise = np.random.default_rng(seed).integers(-9000, 9000, int(seconds * MICROPHONE_RATE))
        self.say(noise.astype(np.int16))

    def say(self, samples: NDArray[np.int16]) -> None:
        """At the microphone's rate."""
        self._speech = np.concatenate([self._speech, samples])

    async def recv(self) -> AudioFrame:
        clock = asyncio.get_running_loop().time
        self._began = clock() if self._began is None else self._began
        await asyncio.sleep(max(0.0, self._began + self._sent / MICROPHONE_RATE - clock()))
        piece = self._speech[:_PIECE]
        self._speech = self._speech[_PIECE:]
        samples = np.pad(piece, (0, _PIECE - len(piece)))
        frame = AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
        frame.sample_rate, frame.pts = MICROPHONE_RATE, self._sent
        frame.time_base = Fraction(1, MICROPHONE_RATE)
        self._sent += _PIECE
        return frame


@dataclass
class Seen:
    """What a connection was sent, decoded, with the loop time at which it was there."""

    frames: list[tuple[float, int, int]] = field(default_factory=list)  # at, RTP time, number
    sound: list[tuple[float, int, NDArray[np.int16]]] = field(default_factory=list)

    def loud(self, since: float = 0.0) -> list[float]:
        """Loop times at which pieces arrived that can be heard."""
        return [at for at, _, sound in self.sound if at > since and np.abs(sound).max() > 1000]


@dataclass
class Browser:
    url: str
    key: str = ""
    codec: str = ""  # the only one offered; empty: all
    voice: Voice | None = None
    seen: Seen = field(default_factory=Seen)
    told: list[dict[str, Any]] = field(default_factory=list)
    call: str = ""
    location: str = ""

    def __post_init__(self) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration([]))
        self.connection.on("track", self._track)
        self.channel: RTCDataChannel | None = None
        self._reading: list[asyncio.Task[None]] = []

    # ---- HTTP ----

    async def ask(self, method: str, path: str, **given: Any) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and body, parsed when it is JSON."""
        headers = given.pop("headers", {})
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, headers=headers, **given) as answer,
        ):
            body: Any = await answer.read()
            if answer.content_type == "application/json":
                body = json.loads(body)
            return answer.status, answer.headers, body

    # ---- WebRTC ----

    async def offer(self, *, kinds: str = "audio video channel") -> str:
        if "channel" in kinds:
            self.channel = self.connection.createDataChannel("call")
            self.channel.on("message", lambda text: self.told.append(json.loads(text)))
        if "audio" in kinds:
            if self.voice is not None:
                self.connection.addTrack(self.voice)
            else:
                self.connection.addTransceiver("audio", direction="recvonly")
        if "video" in kinds:
            transceiver = self.connection.addTransceiver("video", direction="recvonly")
            if self.codec:
                known = RTCRtpReceiver.getCapabilities("video")
                mime = f"video/{self.codec}"
                assert known is not None
                transceiver.setCodecPreferences([c for c in known.codecs if c.mimeType == mime])
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    async def answered(self, sdp: str) -> None:
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

    async def dial(self, **body: Any) -> Browser:
        """Open a call, as the page does."""
        self.voice = self.voice or Voice()
        status, headers, told = await self.ask(
            "POST", "/v1/calls", json={"sdp": await self.offer(), **body}
        )
        assert status == 201, told
        self.call, self.location = told["call"], headers["Location"]
        await self.answered(told["sdp"])
        return self

    async def attend(self, path: str, *, kinds: str = "audio video") -> Browser:
        """WHEP or WHIP."""
        status, headers, sdp = await self.ask(
            "POST",
            path,
            data=await self.offer(kinds=kinds),
            headers={"Content-Type": "application/sdp"},
        )
        assert status == 201, sdp
        self.location = headers["Location"]
        await self.answered(sdp.decode())
        return self

    def send(self, kind: str, **fields: Any) -> None:
        assert self.channel is not None
        self.channel.send(json.dumps({"type": kind, **fields}))

    async def hears(self, true: Callable[[Browser], Any], seconds: float = PATIENCE) -> None:
        async with asyncio.timeout(seconds):
            while not true(self):  # noqa: ASYNC110  nobody tells when all of it is true
                await asyncio.sleep(0.01)

    async def ready(self) -> dict[str, Any]:
        await self.hears(lambda it: it.all("ready"))
        return self.all("ready")[0]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.told if message["type"] == kind]

    async def close(self) -> None:
        await self.connection.close()
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    def _track(self, track: MediaStreamTrack) -> None:
        self._reading.append(asyncio.create_task(self._read(track)))

    async def _read(self, track: MediaStreamTrack) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while True:
                frame = await track.recv()
                if isinstance(frame, VideoFrame):
                    luma = frame.to_ndarray(format="gray").astype(np.uint8)
                    self.seen.frames.append((clock(), frame.pts or 0, number_of(luma)))
                elif isinstance(frame, AudioFrame):
                    sound = frame.to_ndarray().reshape(-1, 2)[:, 0].astype(np.int16)
                    self.seen.sound.append((clock(), frame.pts or 0, sound))
        except MediaStreamError:
            pass
