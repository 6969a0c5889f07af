"""Pictures that say which frame they are, really encoded, and read again from what was decoded."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from services.vae.codecs import Codec as VaeCodec
from services.vae.codecs import FrameEncoder, Tuning
from talkingmachines.picture import Codec, EncodedPicture, VideoFormat
from talkingmachines.spec import StreamSpec

_BITS = 12


class NumberedFilm:
    """Twelve upright bars, bright for a one: the frame's number, the highest bit first."""

    def __init__(self, video: VideoFormat, spec: StreamSpec) -> None:
        assert isinstance(video.form, Codec)
        self._codec, self._size = video.form, (spec.height, spec.width)
        rate = video.settings.bitrate or 1_000_000
        self._encoder = FrameEncoder(
            VaeCodec[video.form.name],
            Tuning(rate),
            width=spec.width,
            height=spec.height,
            fps=spec.fps,
        )

    def frame(self, number: int, *, key: bool) -> EncodedPicture:
        if key:
            self._encoder.request_key_frame()
        height, width = self._size
        bits = np.array([number >> (_BITS - 1 - bit) & 1 for bit in range(_BITS)])
        luma = np.repeat(np.where(bits, 220, 40), width // _BITS)
        luma = np.pad(luma, (0, width - len(luma)), "edge")
        planes = np.full((1, height * 3 // 2, width), 128, np.uint8)
        planes[0, :height] = luma
        encoded = self._encoder.encode(torch.from_numpy(planes), number)[0]
        return EncodedPicture(self._codec, encoded.key, encoded.payload)


def number_of(luma: NDArray[np.uint8]) -> int:
    """The number of a decoded frame, of its luma [height, width]."""
    width = luma.shape[1] // _BITS
    bars = luma.mean(axis=0)
    bits = [bars[bit * width : (bit + 1) * width][1:-1].mean() > 130 for bit in range(_BITS)]
    return sum(int(on) << (_BITS - 1 - bit) for bit, on in enumerate(bits))
