"""Small plots over a run's time, as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from loadtest.book import CallLog

_WIDTH, _HEIGHT = 960, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 10, 22, 20
_COLOURS = ("#1668b8", "#c4532d", "#3a8c4c", "#8a4fae", "#a37b13", "#1d8a99", "#b3356f", "#666")
_GRID, _FAULT, _STALL = "#e2e2e2", "#d99", "#d00"
_NAMED = 6  # series; of more each has its name where the pointer is
_LEAST_ROW, _MOST_ROW = 2.0, 14.0  # pixels of one call


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one name: (seconds, value)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment."""

    at: float
    says: str


def plot(
    title: str, series: Sequence[Series], end: float, marks: Sequence[Mark], *, lines: bool = False
) -> str:
    """Points, or lines through them, from 0 to `end` seconds."""
    values = [value for one in series for _, value in one.points]
    low, high = min([0.0, *values]), max([0.0, *values])
    high = high if high > low else low + 1.0

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    parts = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(at):.1f}" y2="{y(at):.1f}" '
        f'stroke="{_GRID}"/><text x="{_LEFT - 6}" y="{y(at) + 4:.1f}" text-anchor="end">'
        f"{at:.3g}</text>"
        for at in (low, (low + high) / 2, high)
    ]
    for number, one in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(_x(at, end), y(value)) for at, value in one.points]
        parts.append(_line(places, colour, one.name) if lines else _dots(places, colour, one.name))
    return _frame(title, _HEIGHT, parts, end, marks, series)


def bars(title: str, calls: Sequence[CallLog], end: float, marks: Sequence[Mark]) -> str:
    """A bar for each call, from ringing to its end."""
    row = min(_MOST_ROW, max(_LEAST_ROW, 240 / max(1, len(calls))))
    height = _TOP + _BOTTOM + row * max(1, len(calls))
    parts = []
    for number, call in enumerate(calls):
        top = _TOP + number * row
        until = end if call.ended is None else call.ended
        colour = "#9bc39f" if call.outcome == "completed" else "#e0b04c"
        says = f"{call.kind} {call.number}: {call.outcome or 'cut short'} {call.detail}"
        parts.append(_bar(call.began, until, end, top, row, colour, says))
        for at, seconds in call.stalls:
            parts.append(_bar(at, at + seconds, end, top, row, _STALL, f"{seconds:.2f} s"))
    return _frame(title, height, parts, end, marks, ())


def _x(at: float, end: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at / end


def _bar(
    begin: float, until: float, end: float, top: float, row: float, colour: str, says: str
) -> str:
    width = max(1.0, _x(until, end) - _x(begin, end))
    return (
        f'<rect x="{_x(begin, end):.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{max(1.0, row - 1):.1f}" fill="{colour}"><title>{escape(says)}</title></rect>'
    )


def _line(places: Sequence[tuple[float, float]], colour: str, name: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    title = f"<title>{escape(name)}</title>"
    return f'<polyline points="{path}" fill="none" stroke="{colour}">{title}</polyline>'


def _dots(places: Iterable[tuple[float, float]], colour: str, name: str) -> str:
    circles = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in places)
    return f'<g fill="{colour}"><title>{escape(name)}</title>{circles}</g>'


def _frame(
    title: str,
    height: float,
    parts: Sequence[str],
    end: float,
    marks: Sequence[Mark],
    series: Sequence[Series],
) -> str:
    """Title, time, faults and names around a drawing."""
    faults = [
        f'<line x1="{_x(mark.at, end):.1f}" x2="{_x(mark.at, end):.1f}" y1="{_TOP}" '
        f'y2="{height - _BOTTOM:.0f}" stroke="{_FAULT}" stroke-dasharray="3 2">'
        f"<title>{escape(mark.says)}</title></line>"
        for mark in marks
    ]
    times = [
        f'<text x="{_x(end * part / 4, end):.1f}" y="{height - 5:.0f}" text-anchor="middle">'
        f"{end * part / 4:.0f} s</text>"
        for part in range(5)
    ]
    names = " ".join(
        f'<tspan fill="{_COLOURS[number % len(_COLOURS)]}">{escape(one.name)}</tspan>'
        for number, one in enumerate(series if len(series) <= _NAMED else ())
    )
    bold = f'<tspan font-weight="bold">{escape(title)}</tspan>'
    head = f'<text x="{_LEFT}" y="14">{bold}  {names}</text>'
    body = "".join([head, *faults, *parts, *times])
    return (
        f'<svg width="{_WIDTH}" height="{height:.0f}" viewBox="0 0 {_WIDTH} {height:.0f}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )
