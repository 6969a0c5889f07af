"""Pictures of results, drawn with Pillow: bars in groups, and bars on a time line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

_SCALE = 2  # drawn larger than shown: lines and letters stay sharp
_INK, _FAINT, _PAPER = (30, 34, 40), (208, 212, 218), (255, 255, 255)
_COLOURS = ((120, 144, 170), (38, 84, 142), (240, 170, 90), (200, 90, 30), (110, 160, 110))


@dataclass(frozen=True, slots=True)
class Bar:
    """Something on a time line."""

    row: str
    label: str
    kind: str  # gives the colour
    began: float  # ms
    ended: float


@dataclass(frozen=True, slots=True)
class Value:
    """A bar's height, and between what it could lie, in either order."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Panel:
    """Groups of bars beside each other: by group, by kind."""

    title: str
    groups: Mapping[str, Mapping[str, Value | None]]
    line: float | None = None  # a level to be held
    line_label: str = ""
    unit: str = "ms"


def timeline(bars: Sequence[Bar], path: Path) -> None:
    """Rows of bars over milliseconds."""
    rows = list(dict.fromkeys(bar.row for bar in sorted(bars, key=lambda bar: bar.row)))
    kinds = list(dict.fromkeys(bar.kind for bar in bars))
    left, top, high, width = 130, 16, 40, 1000
    image, draw = _sheet(width, top + high * len(rows) + 40)
    last = max(bar.ended for bar in bars)
    scale = (width - left - 20) / last
    floor = top + high * len(rows)
    for tick in _ticks(last):
        x = left + tick * scale
        _line(draw, x, top, x, floor, _FAINT)
        _text(draw, x, floor + 6, f"{tick:g} ms", anchor="ma")
    for index, row in enumerate(rows):
        _text(draw, left - 10, top + high * index + high / 2, row, anchor="rm")
    for bar in bars:
        y = top + high * rows.index(bar.row) + 5
        x0, x1 = left + bar.began * scale, left + bar.ended * scale
        _box(draw, x0, y, max(x1, x0 + 1.5), y + high - 10, _colour(kinds.index(bar.kind)))
        if (x1 - x0) > 7 * len(bar.label):
            _text(draw, (x0 + x1) / 2, y + high / 2 - 5, bar.label, _PAPER, anchor="mm")
    image.save(path, optimize=True)


def grouped(panels: Sequence[Panel], path: Path, *, caption: str) -> None:
    """Panels beside each other, one legend, a caption below."""
    kinds = list(
        dict.fromkeys(kind for p in panels for group in p.groups.values() for kind in group)
    )
    width, high, top, left = 350 * len(panels), 280, 40, 52
    lines = wrap(caption, width // 7)
    image, draw = _sheet(width, top + high + 76 + 17 * len(lines))
    each = (width - 10) / len(panels)
    for index, panel in enumerate(panels):
        _panel(draw, panel, kinds, 5 + index * each + left, top, each - left - 12, high)
    x = 20.0
    for index, kind in enumerate(kinds):
        y = top + high + 40
        _box(draw, x, y, x + 12, y + 12, _colour(index))
        _text(draw, x + 18, y + 6, kind, anchor="lm")
        x += 40 + 7.0 * len(kind)
    for number, line in enumerate(lines):
        _text(draw, 20, top + high + 66 + 17 * number, line, anchor="la")
    image.save(path, optimize=True)


def _panel(
    draw: ImageDraw.ImageDraw,
    panel: Panel,
    kinds: Sequence[str],
    left: float,
    top: float,
    width: float,
    high: float,
) -> None:
    values = [v for group in panel.groups.values() for v in group.values() if v is not None]
    most = 1.05 * max([*(max(v.middle, v.low, v.high) for v in values), panel.line or 0.0])
    floor, scale = top + high, high / most
    _text(draw, left + width / 2, top - 12, panel.title, anchor="mb")
    for tick in _ticks(most):
        y = floor - tick * scale
        _line(draw, left, y, left + width, y, _FAINT)
        _text(draw, left - 6, y, f"{tick:g}", anchor="rm")
    each = width / len(panel.groups)
    thick = 0.8 * each / len(kinds)
    for index, (group, bars) in enumerate(panel.groups.items()):
        x = left + index * each + 0.1 * each
        _text(draw, left + (index + 0.5) * each, floor + 6, group, anchor="ma")
        for kind, value in bars.items():
            if value is not None:
                at = x + kinds.index(kind) * thick
                _box(draw, at, floor - value.middle * scale, at + 0.86 * thick, floor,
                     _colour(kinds.index(kind)))  # fmt: skip
                centre = at + 0.43 * thick
                _line(draw, centre, floor - value.low * scale, centre, floor - value.high * scale)
    if panel.line is not None:
        y = floor - panel.line * scale
        _line(draw, left, y, left + width, y, (190, 30, 45))
        _text(draw, left + width, y - 3, panel.line_label, (190, 30, 45), anchor="rb")


def _ticks(most: float) -> list[float]:
    """About six round numbers from 0 on."""
    step = next(
        size * 10.0**power
        for power in range(-3, 9)
        for size in (1, 2, 5)
        if most / (size * 10.0**power) <= 7
    )
    return [step * index for index in range(int(most / step) + 1)]


def _colour(index: int) -> tuple[int, int, int]:
    return _COLOURS[index % len(_COLOURS)]


def _sheet(width: float, height: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (round(_SCALE * width), round(_SCALE * height)), _PAPER)
    return image, ImageDraw.Draw(image)


def _text(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    text: str,
    colour: tuple[int, int, int] = _INK,
    *,
    anchor: str,
) -> None:
    font = ImageFont.load_default(size=12 * _SCALE)
    draw.text((_SCALE * x, _SCALE * y), text, colour, font=font, anchor=anchor)


def _line(
    draw: ImageDraw.ImageDraw,
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    colour: tuple[int, int, int] = _INK,
) -> None:
    ends = tuple(_SCALE * value for value in (x0, y0, x1, y1))
    draw.line(ends, fill=colour, width=_SCALE)


def _box(
    draw: ImageDraw.ImageDraw,
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    colour: tuple[int, int, int],
) -> None:
    draw.rectangle(tuple(_SCALE * value for value in (x0, y0, x1, y1)), fill=colour)
