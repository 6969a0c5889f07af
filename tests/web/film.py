"""Pictures that say whose they are and which, to be read from a canvas in a browser.

A grid of squares, white for a one: a white one, eight bits of the attachment's serial number,
sixteen of the frame's, the highest first.
"""

from __future__ import annotations

from itertools import count

import numpy as np
import torch

from services.vae.codecs import Codec as VaeCodec
from services.vae.codecs import FrameEncoder, Tuning
from talkingmachines.picture import Codec, EncodedPicture, VideoFormat
from talkingmachines.spec import StreamSpec

SIDE = 5  # squares in a row, and in a column
_WHITE, _BLACK, _GREY = 225, 25, 128


class SignedFilms:
    """Makes films, each with a serial number of its own, from 1."""

    def __init__(self) -> None:
        self._serials = count(1)

    def __call__(self, video: VideoFormat, spec: StreamSpec) -> SignedFilm:
        return SignedFilm(video, spec, next(self._serials))


class SignedFilm:
    """One encoded stream."""

    def __init__(self, video: VideoFormat, spec: StreamSpec, serial: int) -> None:
        assert isinstance(video.form, Codec)
        self._codec, self._serial = video.form, serial
        self._width, self._height = spec.width, spec.height
        self._encoder = FrameEncoder(
            VaeCodec[video.form.name],
            Tuning(video.settings.bitrate or 500_000),
            width=spec.width,
            height=spec.height,
            fps=spec.fps,
        )

    def frame(self, number: int, *, key: bool) -> EncodedPicture:
        if key:
            self._encoder.request_key_frame()
        signed = (1 << 24) | (self._serial & 0xFF) << 16 | number & 0xFFFF
        bits = np.array([signed >> bit & 1 for bit in reversed(range(SIDE * SIDE))])
        squares = np.where(bits, _WHITE, _BLACK).reshape(SIDE, SIDE)
        rows = np.arange(self._height) * SIDE // self._height
        columns = np.arange(self._width) * SIDE // self._width
        planes = np.full((1, self._height * 3 // 2, self._width), _GREY, np.uint8)
        planes[0, : self._height] = squares[rows][:, columns]
        encoded = self._encoder.encode(torch.from_numpy(planes), number)[0]
        return EncodedPicture(self._codec, encoded.key, encoded.payload)
