"""One WebRTC connection: an offer answered, media sent and heard, a data channel, its end.

Beside the path: http_api, browser_call → **webrtc** → browser. The only file that knows aiortc. It
encodes nothing: what it sends are packets that others made, cut for this connection alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import av
from aioice import Connection
from aioice.stun import TransactionError
from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RtcpPsfbPacket,
    unpack_remb_fci,
)
from aiortc.sdp import candidate_from_sdp
from av.audio.frame import AudioFrame

from services.gateway.ice import Ice
from talkingmachines.errors import BadInput
from talkingmachines.picture import Codec

CHANNEL = "call"  # the data channel's label

_CODECS = {"VP8": Codec.VP8, "H264": Codec.H264}
_MOST_WAITING = {"audio": 50, "video": 50}  # packets of a connection that does not take them
_CLOSE_SECONDS = 5.0
_FLUSH_SECONDS = 1.0  # for last messages
_MOST_BUFFERED = 1 << 20  # bytes of messages that a client does not read
_MOST_CANDIDATES = 30
_CONSENT_SECONDS, _CONSENT_EVERY = 30.0, 5.0
_CONSENT_AGAIN = 3  # times that a question is repeated: its answer may take 7.5 s
_SECTION = re.compile(r"^m=(\w+) ", re.MULTILINE)
_CANDIDATE = re.compile(r"^a=candidate:(.*)$", re.MULTILINE)
_MID = re.compile(r"^a=mid:(\S+)", re.MULTILINE)
_CHOSEN = re.compile(r"^m=video \d+ \S+ (\d+)", re.MULTILINE)
# What a parser of foreign text raises where the text is not what it seems.
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
)


def quiet() -> None:
    """Keep the libraries from writing addresses of clients into the log."""
    for name in ("aioice", "aiortc"):
        logging.getLogger(name).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Wants:
    """What a connection is for."""

    sections: tuple[dict[str, int], ...]  # kinds of media sections, and how many, that it may have
    sends: bool  # pictures and sound
    codecs: Sequence[Codec] = ()  # that it may send, the best first


CALL = ({"audio": 1, "video": 1, "application": 1}, {"audio": 1, "application": 1})
VIEWER = ({"audio": 1, "video": 1}, {"video": 1}, {"audio": 1})
MICROPHONE = ({"audio": 1},)


class Feed(MediaStreamTrack):
    """Packets for one connection, in order; bounded."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._packets: deque[av.Packet[Any]] = deque()
        self._arrived = asyncio.Event()

    @property
    def full(self) -> bool:
        return len(self._packets) >= _MOST_WAITING[self.kind]

    def put(self, packet: av.Packet[Any]) -> None:
        self._packets.append(packet)
        self._arrived.set()

    async def recv(self) -> av.Packet[Any]:
        while not self._packets:
            self._arrived.clear()
            await self._arrived.wait()
        return self._packets.popleft()


class Peer:
    """One connection with a client.

    Set before `answer`:
        on_key_frame: the client cannot decode what it has.
        on_bitrate: it believes that it can take so many bits a second.
        on_message: it said something on the data channel.
        on_sound: it said something into its microphone.
    """

    def __init__(self, wants: Wants, ice: Ice) -> None:
        self.on_key_frame: Callable[[], None] = lambda: None
        self.on_bitrate: Callable[[int], None] = lambda _bits: None
        self.on_message: Callable[[str | bytes], None] = lambda _text: None
        self.on_sound: Callable[[AudioFrame], None] = lambda _frame: None
        self.connected = asyncio.Event()
        self.ready = asyncio.Event()  # connected, and its data channel, if it has one, is open
        self.gone = asyncio.Event()
        self.codec: Codec | None = None  # of the pictures sent
        self._wants = wants
        self._ice = ice
        # Who knows its own address need not ask for it; aiortc's default would ask strangers.
        asks = bool(ice.stun_urls) and not ice.public_address
        servers = [RTCIceServer(list(ice.stun_urls))] if asks else []
        self._connection = RTCPeerConnection(
            RTCConfiguration(iceServers=servers, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        )
        self._connection.on("connectionstatechange", self._changed)
        self._connection.on("datachannel", self._opened)
        self._connection.on("track", self._heard)
        self._picture: Feed | None = None
        self._sound: Feed | None = None
        self._senders: list[RTCRtpSender] = []
        self._channel: RTCDataChannel | None = None
        self._has_channel = False
        self._listening: list[asyncio.Task[None]] = []
        self._starts_with_key = True  # nothing can be decoded before a key frame
        self._candidates = 0

    # ---- The agreement ----

    async def answer(self, offer: str) -> str:
        """Agree to a client's offer; returns our answer, with all our candidates.

        Raises:
            BadInput: it is not an offer of the kind wanted, or has no codec that can be sent.
        """
        kinds = _kinds(offer, self._wants)
        self._has_channel = "application" in kinds
        for kind in kinds:
            if kind != "application":
                self._prepare(kind)
        try:
            described = RTCSessionDescription(_without_names(offer), "offer")
            await self._connection.setRemoteDescription(described)
            for transceiver in self._connection.getTransceivers():
                _be_patient(transceiver.receiver.transport.transport.iceGatherer._connection)
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except _MALFORMED as error:
            raise BadInput("sdp", got=_shown(error), expected=self._expected) from None
        answer = self._connection.localDescription.sdp
        if "video" in kinds:
            self.codec = _chosen(answer)
        return self._ice.published(answer)

    async def candidates(self, fragment: str) -> None:
        """Take a client's further candidates, as `application/trickle-ice-sdpfrag`.

        Raises:
            BadInput: they are none, or too many.
        """
        mid = _MID.search(fragment)
        try:
            for line in _CANDIDATE.findall(fragment):
                self._candidates += 1
                if self._candidates > _MOST_CANDIDATES:
                    got = f"{self._candidates} candidates"
                    raise BadInput("body", got=got, expected=f"at most {_MOST_CANDIDATES}")
                candidate = candidate_from_sdp(line.strip())
                candidate.sdpMid = mid[1] if mid else "0"
                if _usable(candidate.ip):
                    await self._connection.addIceCandidate(candidate)
        except _MALFORMED as error:
            raise BadInput("body", got=_shown(error), expected="ICE candidates") from None

    def _prepare(self, kind: str) -> None:
        if not self._wants.sends:
            self._connection.addTransceiver(kind, direction="recvonly")
            return
        feed = Feed(kind)
        direction = "sendrecv" if kind == "audio" and self._has_channel else "sendonly"
        transceiver = self._connection.addTransceiver(feed, direction=direction)
        self._senders.append(transceiver.sender)
        if kind == "audio":
            self._sound = feed
            return
        self._picture = feed
        names = [f"video/{codec.name}" for codec in self._wants.codecs]
        known = RTCRtpSender.getCapabilities("video").codecs
        chosen = [codec for name in names for codec in known if codec.mimeType == name]
        again = [codec for codec in known if codec.mimeType == "video/rtx"]
        transceiver.setCodecPreferences([*chosen, *again])
        _overhear(transceiver.sender, self._feedback)

    @property
    def _expected(self) -> str:
        codecs = " or ".join(codec.name for codec in self._wants.codecs)
        return "an offer" + (f" of a connection that takes {codecs}" if codecs else "")

    # ---- Sending ----

    def picture(self, packet: av.Packet[Any], *, key: bool) -> bool:
        """Take an encoded picture; False when it was dropped."""
        if self._picture is None or not self.connected.is_set():
            return False
        if self._picture.full:
            self._starts_with_key = True
        if self._starts_with_key and not key:
            return False
        self._starts_with_key = False
        self._picture.put(packet)
        return True

    def sound(self, packet: av.Packet[Any]) -> None:
        if self._sound is not None and self.connected.is_set() and not self._sound.full:
            self._sound.put(packet)

    def tell(self, message: str) -> None:
        """Send a message; a client that reads none is given up."""
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return
        if channel.bufferedAmount > _MOST_BUFFERED:
            self.gone.set()
            return
        with suppress(InvalidStateError, ConnectionError):
            channel.send(message)

    # ---- Its state ----

    async def quality(self) -> tuple[float | None, int, int]:
        """Round-trip seconds, packets lost and packets sent, of pictures, as its reports say."""
        trip, lost, sent = None, 0, 0
        for sender in self._senders:
            if sender.kind != "video":
                continue
            for report in (await sender.getStats()).values():
                if report.type == "remote-inbound-rtp":
                    trip, lost = report.roundTripTime, report.packetsLost
                elif report.type == "outbound-rtp":
                    sent = report.packetsSent
        return trip, max(0, lost), sent

    async def close(self) -> None:
        """End the connection, once the last messages had their time to leave."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_SECONDS):
                # aiortc tells of a threshold that is passed, not of an empty buffer.
                while self._channel is not None and self._channel.bufferedAmount:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._connection.close()
        self.gone.set()

    def _changed(self) -> None:
        match self._connection.connectionState:
            case "connected":
                self.connected.set()
                if not self._has_channel:
                    self.ready.set()
            case "failed" | "closed":
                self.gone.set()

    def _opened(self, channel: RTCDataChannel) -> None:
        if self._channel is not None or channel.label != CHANNEL:
            return
        self._channel = channel
        channel.on("message", lambda text: self.on_message(text))
        channel.on("close", self.gone.set)
        self.ready.set()

    def _heard(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._listening.append(asyncio.create_task(self._listen(track)))

    async def _listen(self, track: MediaStreamTrack) -> None:
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, AudioFrame)
                self.on_sound(frame)

    def _feedback(self, packet: object) -> None:
        match packet:
            case RtcpPsfbPacket(fmt=kind) if kind in (RTCP_PSFB_PLI, RTCP_PSFB_FIR):
                self.on_key_frame()
            case RtcpPsfbPacket(fmt=kind) if kind == RTCP_PSFB_APP:
                with suppress(ValueError):
                    self.on_bitrate(unpack_remb_fci(packet.fci)[0])


def _be_patient(connection: Connection) -> None:
    """Let consent last as RFC 7675 has it: 30 s from the last answer, however long answers take.

    aioice gives each answer half a second, so a client farther away is cut off after half a minute.
    """

    async def keep_consent() -> None:
        clock = asyncio.get_running_loop().time
        given = clock()
        while clock() - given < _CONSENT_SECONDS:
            await asyncio.sleep(_CONSENT_EVERY * random.uniform(0.8, 1.2))
            assert connection.remote_password is not None, "known once connected"
            key = connection.remote_password.encode()
            for pair in connection._nominated.values():
                request = connection.build_request(pair, nominate=False)
                with suppress(TransactionError):
                    await pair.protocol.request(
                        request, pair.remote_addr, key, retransmissions=_CONSENT_AGAIN
                    )
                    given = clock()
        connection._query_consent_task = None  # which closing would wait for
        await connection.close()

    connection.query_consent = keep_consent  # type: ignore[method-assign]


def _overhear(sender: RTCRtpSender, heard: Callable[[object], None]) -> None:
    """Tell `heard` what the client reports about a stream that we send.

    aiortc keeps that for the encoders of its own, which a stream that is encoded already has not.
    """
    handle = sender._handle_rtcp_packet

    async def handled(packet: Any) -> None:
        heard(packet)
        await handle(packet)

    sender._handle_rtcp_packet = handled  # type: ignore[method-assign]


def _kinds(offer: str, wants: Wants) -> list[str]:
    kinds = _SECTION.findall(offer)
    counts = {kind: kinds.count(kind) for kind in kinds}
    if counts not in wants.sections:
        wanted = " or ".join(" + ".join(sections) for sections in wants.sections)
        got = " + ".join(kinds[:8]) or "nothing"
        raise BadInput("sdp", got=f"sections {got}", expected=f"sections {wanted}")
    if "a=group:BUNDLE" not in offer:
        raise BadInput("sdp", got="no bundle", expected="all sections in one bundle")
    return kinds


def _without_names(offer: str) -> str:
    """The offer without candidates that only multicast could resolve, and without their end.

    Those behind a name reach us by ours; how, their first packets show.
    """
    lines = offer.splitlines()
    candidates = [line for line in lines if line.startswith("a=candidate:")]
    if len(candidates) > _MOST_CANDIDATES:
        got = f"{len(candidates)} candidates"
        raise BadInput("sdp", got=got, expected=f"at most {_MOST_CANDIDATES}")
    kept = [line for line in lines if not _unusable(line)]
    return "\r\n".join([*kept, ""])


def _unusable(line: str) -> bool:
    if line.startswith("a=candidate:"):
        parts = line.split()
        return len(parts) < 5 or not _usable(parts[4])
    return line.startswith("a=end-of-candidates")


def _usable(address: str) -> bool:
    return not address.endswith(".local")


def _chosen(answer: str) -> Codec:
    """The codec that the answer names first."""
    first = _CHOSEN.search(answer)
    named = first and re.search(rf"^a=rtpmap:{first[1]} (\w+)/", answer, re.MULTILINE)
    assert named, "an answer of ours names its codecs"
    return _CODECS[named[1]]


def _shown(error: BaseException) -> str:
    return str(error)[:100] or type(error).__name__
