"""A picture that a stranger sent: decoded safely, cut to the stream's shape, made small.

Beside the path: avatars → **images**. Nothing is decoded before its format, bytes and size are
known to be within limits.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps

from talkingmachines.errors import BadInput
from talkingmachines.picture import PixelFormat, RawPicture, Region

_FORMATS = ("JPEG", "PNG", "WEBP")
_LEAST_SIDE = 64  # pixels: below, there is no face to be seen
_PORTRAIT_SIDE = 256
_PORTRAIT_QUALITY = 85
_SMALLEST_FACE = 0.01  # of the picture's width and height


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a client may send as a picture."""

    bytes: int = 10 * 1024 * 1024
    pixels: int = 40_000_000


def decode(image: bytes, limits: ImageLimits) -> Image.Image:
    """The picture, upright, in RGB; what is transparent becomes grey.

    Raises:
        BadInput: not a picture of a known format, damaged, too small or too large.
    """
    formats = ", ".join(_FORMATS)
    if not image:
        raise BadInput("image", got="nothing", expected=f"a {formats} file")
    if len(image) > limits.bytes:
        expected = f"at most {limits.bytes} bytes"
        raise BadInput("image", got=f"{len(image)} bytes", expected=expected)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we set our own limit
            opened = Image.open(BytesIO(image), formats=_FORMATS)
        _check_size(opened, limits)
        opened.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput("image", got=_shown(error), expected=f"a {formats} file") from None
    upright = ImageOps.exif_transpose(opened)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    layer = upright.convert("RGBA")
    grey = Image.new("RGBA", layer.size, (128, 128, 128, 255))
    return Image.alpha_composite(grey, layer).convert("RGB")


@dataclass(frozen=True, slots=True)
class Crop:
    """The middle of a picture, in another shape. Units: pixels of the picture."""

    x: int
    y: int
    width: int
    height: int
    of: tuple[int, int]  # the picture's width and height

    @classmethod
    def to_shape(cls, picture: Image.Image, width: int, height: int) -> Crop:
        """The largest part about the middle whose sides are as width to height."""
        scale = min(picture.width / width, picture.height / height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        x, y = (picture.width - inner[0]) // 2, (picture.height - inner[1]) // 2
        return cls(x, y, *inner, of=picture.size)

    def cut(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        box = (self.x, self.y, self.x + self.width, self.y + self.height)
        return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)

    def region(self, face: Region, *, at: str) -> Region:
        """Where a face of the whole picture is in the part.

        Raises:
            BadInput: it is not in the part, or too small.
        """
        left, right = self._inside(face.x, face.width, self.x, self.width, self.of[0])
        top, bottom = self._inside(face.y, face.height, self.y, self.height, self.of[1])
        if right - left < _SMALLEST_FACE or bottom - top < _SMALLEST_FACE:
            raise BadInput(
                at,
                got=f"x={face.x:g} y={face.y:g} width={face.width:g} height={face.height:g}",
                expected="a face that can be seen after cropping about the middle",
            )
        return Region(left, top, right - left, bottom - top)

    @staticmethod
    def _inside(start: float, size: float, cut: int, kept: int, whole: int) -> tuple[float, float]:
        low, high = (start * whole - cut) / kept, ((start + size) * whole - cut) / kept
        return min(1.0, max(0.0, low)), min(1.0, max(0.0, high))


def raw(picture: Image.Image) -> RawPicture:
    """The picture's pixels, RGB24."""
    return RawPicture(PixelFormat.RGB24, picture.width, picture.height, picture.tobytes())


def portrait(picture: Image.Image) -> bytes:
    """A small JPEG for lists of avatars."""
    small = picture.copy()
    small.thumbnail((_PORTRAIT_SIDE, _PORTRAIT_SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    small.save(file, "JPEG", quality=_PORTRAIT_QUALITY, optimize=True)
    return file.getvalue()


def _check_size(picture: Image.Image, limits: ImageLimits) -> None:
    width, height = picture.size
    if width * height > limits.pixels or min(width, height) < _LEAST_SIDE:
        raise BadInput(
            "image",
            got=f"{width} x {height} pixels",
            expected=f"sides of at least {_LEAST_SIDE} and at most {limits.pixels} pixels in all",
        )


def _shown(error: Exception) -> str:
    """What the decoder said, without our variable's address in memory."""
    return "something else" if "cannot identify" in str(error) else f"a damaged file: {error}"
