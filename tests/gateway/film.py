"""Pictures that say which frame they are, really encoded, and read again from what was decoded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from services.vae.codecs import Codec as VaeCodec
from services.vae.codecs import FrameEncoder, Tuning
from talkingmachines.picture import Codec, EncodedPicture, VideoFormat
from talkingmachines.spec import StreamSpec

_BITS, _GREY = 12, 128

Luma = NDArray[np.uint8]


class DrawnFilm:
    """One encoded stream of grey pictures.

    Args:
        draw: the luma [height, width] of the frame of a number.
        bitrate: where `video` says none, bit/s.
    """

    def __init__(
        self, video: VideoFormat, spec: StreamSpec, draw: Callable[[int], Luma], *, bitrate: int
    ) -> None:
        assert isinstance(video.form, Codec)
        self._codec, self._size, self._draw = video.form, (spec.height, spec.width), draw
        self._encoder = FrameEncoder(
            VaeCodec[video.form.name],
            Tuning(video.settings.bitrate or bitrate),
            width=spec.width,
            height=spec.height,
            fps=spec.fps,
        )

    def frame(self, number: int, *, key: bool) -> EncodedPicture:
        if key:
            self._encoder.request_key_frame()
        height, width = self._size
        planes = np.full((1, height * 3 // 2, width), _GREY, np.uint8)
        planes[0, :height] = self._draw(number)
        encoded = self._encoder.encode(torch.from_numpy(planes), number)[0]
        return EncodedPicture(self._codec, encoded.key, encoded.payload)


def numbered_film(video: VideoFormat, spec: StreamSpec, _anchor: bytes) -> DrawnFilm:
    """Twelve upright bars, bright for a one: the frame's number, the highest bit first."""

    def bars(number: int) -> Luma:
        bits = np.array([number >> (_BITS - 1 - bit) & 1 for bit in range(_BITS)])
        luma = np.repeat(np.where(bits, 220, 40), spec.width // _BITS)
        row = np.pad(luma, (0, spec.width - len(luma)), "edge").astype(np.uint8)
        return np.broadcast_to(row, (spec.height, spec.width))

    return DrawnFilm(video, spec, bars, bitrate=1_000_000)


def number_of(luma: Luma) -> int:
    """The number of a decoded frame, of its luma [height, width]."""
    width = luma.shape[1] // _BITS
    bars = luma.mean(axis=0)
    bits = [bars[bit * width : (bit + 1) * width][1:-1].mean() > 130 for bit in range(_BITS)]
    return sum(int(on) << (_BITS - 1 - bit) for bit, on in enumerate(bits))
