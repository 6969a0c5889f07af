"""Find the faces in a picture.

Beside the path: avatars → **faces**. OpenCV's frontal-face cascade: its model is inside the wheel,
it takes some 20 ms, and a miss costs little, because a caller can name the regions and the whole
picture serves as well.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from talkingmachines.picture import Region

_SIDE = 640  # pixels: a larger picture has no more faces worth finding
_STEP = 1.1  # between the sizes that are looked for
_NEIGHBOURS = 6  # detections that must agree: a wrong face is worse than none
_SMALLEST = 1 / 12  # of the picture's shorter side
_UP, _DOWN = 0.1, 0.15  # the cascade frames brows to lips: add forehead and chin, in face heights


def find_faces(picture: Image.Image, *, most: int) -> list[Region]:
    """The largest faces, from left to right; empty when there are none."""
    small = picture.convert("L")
    small.thumbnail((_SIDE, _SIDE))
    grey = cv2.equalizeHist(np.asarray(small))
    side = round(_SMALLEST * min(small.size))
    found = _cascade().detectMultiScale(
        grey, scaleFactor=_STEP, minNeighbors=_NEIGHBOURS, minSize=(side, side)
    )
    boxes = sorted((tuple(map(int, box)) for box in found), key=lambda box: -box[2] * box[3])
    regions = [_region(box, small.width, small.height) for box in boxes[:most]]
    return sorted(regions, key=lambda region: region.x)


def _region(box: tuple[int, ...], width: int, height: int) -> Region:
    x, y, w, h = box
    top, bottom = max(0.0, y - _UP * h), min(float(height), y + (1 + _DOWN) * h)
    return Region(x / width, top / height, w / width, (bottom - top) / height)


def _cascade() -> cv2.CascadeClassifier:
    """Loaded anew each time: it is not safe to share between threads, and it takes 15 ms."""
    file = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"
    return cv2.CascadeClassifier(str(file))
