"""Speech as it arrives: 16-bit PCM, checked, brought to the rate that the model hears.

First station of the front end: **pcm** → speech encoder or wav2vec2 → track. Knows nothing of
models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.score.frontend.grid import Rates
from talkingmachines.errors import BadInput

if TYPE_CHECKING:
    import av

Pcm16 = NDArray[np.int16]


def pcm16(pcm: bytes | bytearray | memoryview | NDArray[Any], field: str) -> Pcm16:
    """Mono PCM as an int16 array, from little-endian bytes or an int16 array.

    Args:
        field: the path of the field, for the error.

    Raises:
        BadInput: an odd number of bytes, another dtype or more than one channel.
    """
    if isinstance(pcm, np.ndarray):
        if pcm.dtype != np.int16:
            raise BadInput(field, got=f"{pcm.dtype} samples", expected="int16 samples")
        if pcm.ndim != 1:
            raise BadInput(field, got=f"shape {list(pcm.shape)}", expected="one channel, [samples]")
        return pcm
    if len(pcm) % 2:
        raise BadInput(field, got=f"{len(pcm)} bytes", expected="16-bit PCM, an even number")
    return np.frombuffer(pcm, dtype="<i2").astype(np.int16, copy=False)


def samples_of(pcm: Pcm16) -> Tensor:
    """Float32 samples [1, N] in [-1, 1)."""
    return torch.from_numpy(pcm.astype(np.float32) / 32768.0)[None]


def finite_samples(samples: Tensor, field: str) -> Tensor:
    """`samples` itself, when a model may hear it: float32 [B, N], every value finite.

    Raises:
        BadInput: another dtype or rank, or a value that is not a number or infinite.
    """
    if samples.dtype != torch.float32:
        raise BadInput(field, got=f"{samples.dtype} samples", expected="torch.float32 samples")
    if samples.ndim != 2:
        raise BadInput(field, got=f"shape {list(samples.shape)}", expected="[streams, samples]")
    if not torch.isfinite(samples).all():
        raise BadInput(field, got="a value that is not finite", expected="finite samples")
    return samples


class Resampler:
    """Changes the rate of one stream of PCM, by FFmpeg's swresample; pieces may have any size.

    The pieces' results joined equal the result for the joined pieces. Results come
    `rates.lookahead` late; a stream that is entered at a multiple of `rates.step` equals, after
    `rates.history` samples, the stream heard from its start.
    """

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._filter = _filter(rates)

    def push(self, pcm: Pcm16) -> Pcm16:
        """The result as far as it is known after `pcm`; may be empty."""
        if self._filter is None or not len(pcm):
            return pcm
        import av

        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = self._rates.source
        return _joined(self._filter.resample(frame))


def _filter(rates: Rates) -> av.AudioResampler | None:
    if rates.source == rates.target:
        return None
    import av  # only who resamples needs FFmpeg

    return av.AudioResampler(format="s16", layout="mono", rate=rates.target)


def _joined(frames: list[av.AudioFrame]) -> Pcm16:
    parts = [frame.to_ndarray()[0].astype(np.int16, copy=False) for frame in frames]
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)
