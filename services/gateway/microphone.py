"""What a browser's microphone sends, as a stream of samples without gaps.

On the path: webrtc → **microphone** → session. Whoever listens must hear silence, not nothing:
where packets were lost or none come any more, there is silence as long, up to a second.
"""

from __future__ import annotations

import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from talkingmachines.media import Pcm

_STALLED_SECONDS = 1.0  # without a packet: longer than a busy machine keeps them waiting
_LONGEST_GAP = 1.0  # seconds that are filled; a longer one is a new beginning


class Microphone:
    """One call's; `on` is what the user said last about it."""

    def __init__(self) -> None:
        self.on = True
        self._rate = 0
        self._next: int | None = None  # where the next packet begins, in samples
        self._heard_at = 0.0

    def heard(self, frame: AudioFrame, now: float) -> list[Pcm]:
        """The samples of a decoded packet, and the silence that was lost before it."""
        self._heard_at = now
        self._rate = frame.sample_rate
        samples = _mono(frame)
        begins = frame.pts if frame.pts is not None else (self._next or 0)
        gap = 0 if self._next is None else begins - self._next
        self._next = begins + len(samples)
        if not self.on:
            samples = np.zeros_like(samples)
        sound = Pcm(samples.tobytes(), self._rate)
        if 0 < gap <= _LONGEST_GAP * self._rate:
            return [self._silence(gap), sound]
        return [sound]

    def stalled(self, now: float) -> list[Pcm]:
        """Silence for the time since the last packet, when none came for long."""
        missing = now - self._heard_at
        if self._next is None or missing < _STALLED_SECONDS:
            return []
        self._heard_at = now
        length = round(missing * self._rate)
        self._next += length
        return [self._silence(length)]

    def changed(self) -> None:
        """Another microphone speaks from now on."""
        self._next = None

    def _silence(self, samples: int) -> Pcm:
        return Pcm(bytes(2 * samples), self._rate)


def _mono(frame: AudioFrame) -> NDArray[np.int16]:
    """[samples] of a packed 16-bit frame: the mean of its channels."""
    channels = frame.layout.nb_channels
    packed = frame.to_ndarray().reshape(-1, channels)
    if channels == 1:
        return np.ascontiguousarray(packed[:, 0], dtype=np.int16)
    mixed: NDArray[np.int16] = packed.mean(axis=1).astype(np.int16)
    return mixed
