"""A session's voice in pieces of 20 ms, encoded once, when each is sent.

Beside the path: broadcast → **opus**. Until it is sent a piece is samples, so that an interruption
can still silence it, and so that several speakers are heard together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from time import perf_counter
from typing import Any

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from numpy.typing import NDArray

from services.runtime.metrics import GatewayMetrics
from talkingmachines.errors import EngineFailure
from talkingmachines.media import Pcm

RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz; what Opus takes as it is
RTP_RATE = 48_000  # of its timestamps, whatever it was given

_PIECES = 50  # a second
_FADE = 0.005  # seconds, from what was being said to silence
_MOST_WAITING = 100  # pieces; a session is never so far ahead of its own clock
# Half the effort of the most costs little of one voice's quality.
_OPTIONS = {"application": "voip", "compression_level": "5", "fec": "1", "packet_loss": "5"}


@dataclass(slots=True)
class Piece:
    """20 ms, at its place in RTP time."""

    start: int  # samples
    samples: NDArray[np.int32]
    filled: int = 0  # samples that were said

    @property
    def end(self) -> int:
        return self.start + len(self.samples)

    @property
    def complete(self) -> bool:
        return self.filled == len(self.samples)


class Voice:
    """What is said and not sent.

    Raises:
        EngineFailure: the checkpoint speaks at a rate that Opus does not take.
    """

    def __init__(self, sample_rate: int, bitrate: int, metrics: GatewayMetrics) -> None:
        if sample_rate not in RATES:
            raise EngineFailure(f"sound of {sample_rate} Hz cannot be sent as Opus")
        self._rate = sample_rate
        self._metrics = metrics
        self._pieces: deque[Piece] = deque()
        self._encoder = _opened(sample_rate, bitrate)
        self._end = 0  # of what was sent

    @property
    def next(self) -> Piece | None:
        """The oldest that waits."""
        return self._pieces[0] if self._pieces else None

    @property
    def followed(self) -> bool:
        """Whether more waits behind the oldest: nothing can be added to that one."""
        return len(self._pieces) > 1

    def due(self, piece: Piece) -> Fraction:
        """RTP seconds at which the piece begins."""
        return Fraction(piece.start, self._rate)

    def say(self, pcm: Pcm, at: Fraction) -> None:
        """Add speech that begins at RTP second `at`; where there is some already, both are heard.

        What lies before what was sent is not said, nor what lies in a gap.
        """
        start = round(at * self._rate)
        samples = pcm.array().astype(np.int32)[max(0, self._end - start) :]
        start = max(start, self._end)
        while len(samples):
            piece = self._piece(start)
            if piece is None:
                break
            size = min(len(samples), piece.end - start)
            first = start - piece.start
            piece.samples[first : first + size] += samples[:size]
            piece.filled = max(piece.filled, first + size)
            samples, start = samples[size:], start + size
        while len(self._pieces) > _MOST_WAITING:
            self._pieces.popleft()

    def silence(self) -> None:
        """Nothing of what waits is heard, but for a fade."""
        fade = round(_FADE * self._rate)
        for index, piece in enumerate(self._pieces):
            kept = fade if index == 0 else 0
            ramp = np.linspace(1, 0, kept, endpoint=False)
            piece.samples[:kept] = (piece.samples[:kept] * ramp).astype(np.int32)
            piece.samples[kept:] = 0

    def send(self) -> av.Packet[Any]:
        """The oldest piece, encoded; what is missing of it is silence."""
        piece = self._pieces.popleft()
        self._end = piece.end
        began = perf_counter()
        samples = piece.samples.clip(-32_768, 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
        frame.sample_rate = self._rate
        packets = self._encoder.encode(frame)
        assert len(packets) == 1, "a piece is what the encoder takes at a time"
        self._metrics.webrtc_encode_seconds.inc(perf_counter() - began)
        packet = av.Packet(bytes(packets[0]))
        packet.pts = int(self.due(piece) * RTP_RATE)
        packet.time_base = Fraction(1, RTP_RATE)
        return packet

    def _piece(self, at: int) -> Piece | None:
        """The piece that the sample lies in; None for a gap between pieces."""
        if self._pieces and at < self._pieces[-1].end:
            return next((piece for piece in self._pieces if piece.start <= at < piece.end), None)
        new = Piece(at, np.zeros(self._rate // _PIECES, np.int32))
        self._pieces.append(new)
        return new


def _opened(rate: int, bitrate: int) -> AudioCodecContext:
    context = av.CodecContext.create("libopus", "w")
    assert isinstance(context, AudioCodecContext)
    context.bit_rate = bitrate
    context.format = av.AudioFormat("s16")
    context.layout = av.AudioLayout("mono")
    context.sample_rate = rate
    context.time_base = Fraction(1, rate)
    context.options = _OPTIONS
    context.open()
    return context
