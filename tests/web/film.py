"""Pictures that say whose they are and which, to be read from a canvas in a browser.

A grid of squares, white for a one: a white one, eight bits of the attachment's serial number,
sixteen of the frame's, the highest first.
"""

from __future__ import annotations

from itertools import count

import numpy as np

from talkingmachines.picture import VideoFormat
from talkingmachines.spec import StreamSpec
from tests.gateway.film import DrawnFilm, Luma

SIDE = 5  # squares in a row, and in a column
_WHITE, _BLACK = 225, 25


class SignedFilms:
    """Makes films, each with a serial number of its own, from 1."""

    def __init__(self) -> None:
        self._serials = count(1)

    def __call__(self, video: VideoFormat, spec: StreamSpec, _anchor: bytes) -> DrawnFilm:
        serial = next(self._serials)
        rows = np.arange(spec.height) * SIDE // spec.height
        columns = np.arange(spec.width) * SIDE // spec.width

        def squares(number: int) -> Luma:
            signed = (1 << 24) | (serial & 0xFF) << 16 | number & 0xFFFF
            bits = np.array([signed >> bit & 1 for bit in reversed(range(SIDE * SIDE))])
            grid = np.where(bits, _WHITE, _BLACK).astype(np.uint8).reshape(SIDE, SIDE)
            return grid[rows][:, columns]

        return DrawnFilm(video, spec, squares, bitrate=500_000)
