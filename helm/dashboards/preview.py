"""Pictures of the dashboards, drawn from a Prometheus, where no Grafana is at hand.

    python -m helm.dashboards.preview http://127.0.0.1:9090 NAMESPACE SECONDS FOLDER

Panels, their order, units, limits and legends are those of the dashboards; the drawing is ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from helm.dashboards.__main__ import BOARDS
from helm.dashboards.asking import Line, Window
from helm.dashboards.parts import Board, Panel

_WIDTH, _PANEL_HEIGHT, _TITLE_HEIGHT, _GAP = 1500, 230, 34, 10
_PAPER, _PANEL, _GRID, _TEXT, _FAINT = "#f4f5f5", "#ffffff", "#e3e5e8", "#24292e", "#7b8087"
_LIMIT = "#e02f44"
_COLOURS = (
    "#3274d9", "#56a64b", "#f2a800", "#8f3bb8", "#e0752d", "#2f9fb0", "#b877d9", "#7d6754",
    "#1f60c4", "#37872d",
)  # fmt: skip
_LEGEND_LINES, _LINE_HEIGHT = 3, 15
_PER_STEP = {"K": 1e3, "M": 1e6, "G": 1e9}

Box = tuple[float, float, float, float]
Canvas = ImageDraw.ImageDraw


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a value at a time is in a box."""

    box: Box
    start: float
    end: float
    most: float

    def at(self, time: float, value: float) -> tuple[float, float]:
        left, top, right, bottom = self.box
        x = left + (right - left) * (time - self.start) / max(self.end - self.start, 1e-9)
        return x, bottom - (bottom - top) * min(value / self.most, 1.0)


def drawn(board: Board, window: Window) -> Image.Image:
    """A board, asked and drawn."""
    heights = len(board.rows) * (_TITLE_HEIGHT + _PANEL_HEIGHT + _GAP) + 2 * _TITLE_HEIGHT
    picture = Image.new("RGB", (_WIDTH, heights), _PAPER)
    canvas = ImageDraw.Draw(picture)
    canvas.text((_GAP, _GAP), board.title, _TEXT, font=_font(22))
    top = float(_TITLE_HEIGHT + _GAP)
    for row in board.rows:
        canvas.text((_GAP, top + 8), row.title, _TEXT, font=_font(16))
        top += _TITLE_HEIGHT
        width = (_WIDTH - _GAP) / len(row.panels)
        for number, panel in enumerate(row.panels):
            left = _GAP + number * width
            box = (left, top, left + width - _GAP, top + _PANEL_HEIGHT)
            _panel(canvas, box, panel, window)
        top += _PANEL_HEIGHT + _GAP
    return picture


def _panel(canvas: Canvas, box: Box, panel: Panel, window: Window) -> None:
    left, top, right, bottom = box
    canvas.rounded_rectangle(box, 4, fill=_PANEL, outline=_GRID)
    canvas.text((left + 8, top + 6), panel.title, _TEXT, font=_font(14))
    lines = [line for query in panel.queries for line in window.lines(query)]
    values = [value for line in lines for _, value in line.points]
    if not values:
        canvas.text((left + 8, (top + bottom) / 2), "nothing happened", _FAINT, font=_font(13))
        return
    times = [time for line in lines for time, _ in line.points]
    inner = (left + 58, top + 30, right - 10, bottom - 22 - _LEGEND_LINES * _LINE_HEIGHT)
    most = _round_up(_highest(lines) if panel.stacked else max(values))
    scale = Scale(inner, min(times), max(times), most)
    _axes(canvas, scale, panel.unit)
    _curves(canvas, scale, lines, stacked=panel.stacked)
    if panel.limit is not None and panel.limit <= most:
        ends = [scale.at(scale.start, panel.limit), scale.at(scale.end, panel.limit)]
        canvas.line(ends, fill=_LIMIT, width=1)
    _legend(canvas, (left + 8, inner[3] + 20, right - 8, bottom), lines)


def _highest(lines: Sequence[Line]) -> float:
    sums: dict[float, float] = {}
    for line in lines:
        for time, value in line.points:
            sums[time] = sums.get(time, 0.0) + value
    return max(sums.values())


def _axes(canvas: Canvas, scale: Scale, unit: str) -> None:
    left, _, right, bottom = scale.box
    for part in range(5):
        value = scale.most * part / 4
        _, y = scale.at(scale.start, value)
        canvas.line([(left, y), (right, y)], fill=_GRID)
        canvas.text((left - 6, y), _told(value, unit), _FAINT, font=_font(11), anchor="rm")
    for part in range(4):
        x, _ = scale.at(scale.start + (scale.end - scale.start) * part / 3, 0)
        most = round(scale.end - scale.start)
        ago = round(most * (1 - part / 3))
        told = f"-{ago} s" if ago else "now"
        canvas.text(
            (x, bottom + 4),
            told,
            _FAINT,
            font=_font(11),
            anchor="la" if ago == most else "ra" if not ago else "ma",
        )


def _curves(canvas: Canvas, scale: Scale, lines: Sequence[Line], *, stacked: bool) -> None:
    below: dict[float, float] = {}
    for line, colour in zip(lines, _colours(lines), strict=True):
        points = []
        for time, value in line.points:
            below[time] = below.get(time, 0.0) + value
            points.append(scale.at(time, below[time] if stacked else value))
        if len(points) == 1:
            x, y = points[0]
            canvas.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        else:
            canvas.line(points, fill=colour, width=2, joint="curve")


def _legend(canvas: Canvas, box: Box, lines: Sequence[Line]) -> None:
    left, top, right, _ = box
    x, y = left, top
    for number, (line, colour) in enumerate(zip(lines, _colours(lines), strict=True)):
        name = line.name[:28]
        width = canvas.textlength(name, font=_font(11)) + 26
        if x + width > right:
            x, y = left, y + _LINE_HEIGHT
        if y >= top + (_LEGEND_LINES - 1) * _LINE_HEIGHT and x + 2 * width > right:
            canvas.text((x, y), f"and {len(lines) - number} more", _FAINT, font=_font(11))
            return
        canvas.line([(x, y + 7), (x + 12, y + 7)], fill=colour, width=3)
        canvas.text((x + 16, y), name, _TEXT, font=_font(11))
        x += width


def _colours(lines: Sequence[Line]) -> list[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(len(lines))]


def _told(value: float, unit: str) -> str:
    match unit:
        case "percentunit":
            return f"{100 * value:g} %"
        case "s":
            return f"{1000 * value:g} ms" if 0 < value < 1 else f"{value:g} s"
        case "bytes":
            step = next((name for name in "GMK" if value >= _PER_STEP[name]), "")
            return f"{value / _PER_STEP.get(step, 1):.3g} {step}B"
        case _:
            return f"{value:g}"


def _round_up(value: float) -> float:
    """A number of one digit, and not below."""
    if value <= 0:
        return 1.0
    size = 10.0 ** (len(f"{value:.0f}") - 1) if value >= 1 else 10.0 ** -_leading_zeros(value)
    return next(step * size for step in (1, 2, 4, 5, 8, 10) if step * size >= value)


def _leading_zeros(value: float) -> int:
    zeros = 0
    while value < 1:
        value, zeros = value * 10, zeros + 1
    return zeros


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def main() -> None:
    address, namespace, seconds, folder = sys.argv[1:]
    window = Window(address, namespace, float(seconds), step=1.0, rate=20.0)
    for board in BOARDS:
        file = Path(folder) / f"dashboard-{board.name}.png"
        drawn(board, window).quantize(64).save(file, optimize=True)
        print(file)


if __name__ == "__main__":
    main()
