"""Bring speech of any rate to the rate that is needed, once, at the entrance.

On the path: client → **resample** → chunker, and user → **resample** → speech model. The filter is
the one of FFmpeg (swresample); it keeps its history, so pieces of any size give the samples that
the whole would give. Imported by services that have `av`; the runtime itself does without.
"""

from __future__ import annotations

from math import gcd

import av
import numpy as np

from talkingmachines.media import Pcm


class Resampler:
    """One utterance of one speaker. A new utterance takes a new resampler."""

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self.source_rate = source_rate
        self._target_rate = target_rate
        self._filter = (
            None
            if source_rate == target_rate
            else av.AudioResampler(format="s16", layout="mono", rate=target_rate)
        )

    def push(self, pcm: Pcm) -> bytes:
        """The samples at the target rate that `pcm` completes; the filter holds back a few ms."""
        assert pcm.sample_rate == self.source_rate
        if self._filter is None or not len(pcm):
            return pcm.samples
        frame = av.AudioFrame.from_ndarray(
            pcm.array()[None, :].astype(np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = self.source_rate
        return self._drain(frame)

    def flush(self) -> bytes:
        """What the filter still holds; the resampler is used up."""
        return b"" if self._filter is None else self._drain(None)

    def source_position(self, samples: int) -> int:
        """Samples of the source that make `samples` of the target, rounded down.

        Rounded to where both rates meet, so that speech sent again from there has the same phase.
        """
        common = gcd(self.source_rate, self._target_rate)
        return samples // (self._target_rate // common) * (self.source_rate // common)

    def target_samples(self, position: int) -> int:
        """Samples of the target that the source makes up to `position`, of `source_position`."""
        return position * self._target_rate // self.source_rate

    def _drain(self, frame: av.AudioFrame | None) -> bytes:
        assert self._filter is not None
        return b"".join(part.to_ndarray().tobytes() for part in self._filter.resample(frame))
