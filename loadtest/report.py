"""What a run has shown: JSON for programs, one HTML page for people, and whether it is enough.

The page is a single file that fetches nothing: plots are SVG within it.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from loadtest.book import Book, CallLog
from loadtest.measures import Measure, Sample, Summary, Verdict, by_phase, judge, table
from loadtest.plot import Mark, Series, bars, plot
from loadtest.scenario import Scenario

_POINTS = 300  # of one line in a plot, and in the JSON
_CALLS = 500  # that are listed one by one
_SHOWN = (Summary.COUNT, Summary.SUM, Summary.P50, Summary.P95, Summary.P99, Summary.MOST)
_PLOTTED = {
    "first frame and answer, s": (Measure.FIRST_FRAME, Measure.ANSWER),
    "stalls and reconnects, s": (Measure.STALLS, Measure.RECONNECTS),
    "pictures minus sound, s": (Measure.SKEW,),
}


@dataclass(frozen=True, slots=True)
class Report:
    """One run, put together."""

    scenario: Scenario
    book: Book
    finished: bool  # not stopped before its end
    command: str

    @property
    def verdicts(self) -> list[Verdict]:
        return [self._verdict(number) for number in range(len(self.scenario.objectives))]

    @property
    def met(self) -> bool:
        """Whether everything that was asked for holds, of a whole run."""
        return self.finished and all(verdict.met for verdict in self.verdicts)

    def _verdict(self, number: int) -> Verdict:
        asked = self.scenario.objectives[number]
        samples = self.book.samples if asked.phase is None else self._phases.get(asked.phase, [])
        return judge(
            asked.measure,
            asked.of,
            samples,
            at_most=asked.at_most,
            at_least=asked.at_least,
            where=asked.phase or "",
        )

    @property
    def _phases(self) -> dict[str, list[Sample]]:
        return by_phase(self.book.samples, self.scenario.phase_at)

    def to_dict(self) -> dict[str, Any]:
        book = self.book
        return {
            "scenario": self.scenario.name,
            "about": self.scenario.about,
            "command": self.command,
            "machine": machine(),
            "finished": self.finished,
            "met": self.met,
            "objectives": [asdict(verdict) for verdict in self.verdicts],
            "whole": table(book.samples),
            "phases": {name: table(found) for name, found in self._phases.items()},
            "faults": [asdict(injury) for injury in book.injuries],
            "calls": [_call(call) for call in book.calls[:_CALLS]],
            "calls_left_out": max(0, len(book.calls) - _CALLS),
            "memory_mb": {name: thinned(series) for name, series in book.memory.items()},
        }

    def to_html(self) -> str:
        name = escape(self.scenario.name)
        parts = [
            f"<h1>{name}: {'all objectives met' if self.met else 'not met'}</h1>",
            f"<p>{escape(self.scenario.about)}</p>",
            f"<p><code>{escape(self.command)}</code><br>{escape(_words(machine()))}</p>",
            "" if self.finished else "<p><b>It was stopped before its end.</b></p>",
            self._objectives(),
            self._plots(),
            self._tables(),
        ]
        return f"<!doctype html><meta charset=utf-8><title>{name}</title>{_STYLE}{''.join(parts)}"

    def _objectives(self) -> str:
        rows = [
            (
                verdict.says,
                "nothing measured" if verdict.got is None else f"{verdict.got:.3g}",
                "met" if verdict.met else "NOT MET",
            )
            for verdict in self.verdicts
        ]
        return "<h2>Objectives</h2>" + _table(("what", "got", ""), rows)

    def _tables(self) -> str:
        phases = self._phases
        names = [phase.name for phase in self.scenario.phases if phase.name in phases]
        parts = ["<h2>Figures by phase</h2>"]
        if len(names) == 1:
            names = []  # it is the whole
        for name, samples in [
            *((name, phases[name]) for name in names),
            ("whole", self.book.samples),
        ]:
            found = table(samples)
            rows = [
                (measure, *(f"{given[of]:.3g}" if of in given else "" for of in _SHOWN))
                for measure, given in found.items()
            ]
            parts.append(f"<h3>{escape(name)}</h3>{_table(('measure', *_SHOWN), rows)}")
        return "".join(parts)

    def _plots(self) -> str:
        end = max([self.scenario.seconds, *(sample.at for sample in self.book.samples)])
        marks = [Mark(injury.at, injury.what) for injury in self.book.injuries]
        calls = self.book.calls[:_CALLS]
        parts = [
            "<h2>Over time</h2>",
            bars("calls; red where the picture stood still", calls, end, marks),
        ]
        for title, measures in _PLOTTED.items():
            lines = [Series(str(one), self._series(one)) for one in measures]
            parts.append(plot(title, [line for line in lines if line.points], end, marks))
        memory = [Series(name, thinned(series)) for name, series in self.book.memory.items()]
        parts.append(plot("memory of each process, MB", memory, end, marks, lines=True))
        return "".join(parts)

    def _series(self, measure: Measure) -> list[tuple[float, float]]:
        return thinned([(one.at, one.value) for one in self.book.samples if one.measure is measure])


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # of the last minute, ours included
        "python": platform.python_version(),
    }


def thinned(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """As many points as a plot can show; of neighbours the higher one stays."""
    step = -(-len(series) // _POINTS) or 1
    groups = (series[start : start + step] for start in range(0, len(series), step))
    kept = (max(group, key=lambda point: point[1]) for group in groups)
    return [(round(at, 2), round(value, 4)) for at, value in kept]


def summary(report: Report) -> str:
    """A few lines for a terminal."""
    lines = [
        f"{'met    ' if verdict.met else 'NOT MET'}  {verdict.says}: "
        f"{'nothing measured' if verdict.got is None else f'{verdict.got:.3g}'}"
        for verdict in report.verdicts
    ]
    ends: dict[str, int] = {}
    for call in report.book.calls:
        ends[call.outcome or "cut short"] = ends.get(call.outcome or "cut short", 0) + 1
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items())) or "none"
    return "\n".join([f"calls: {told}; faults: {len(report.book.injuries)}", *lines])


def _call(call: CallLog) -> dict[str, Any]:
    return {
        "number": call.number,
        "kind": call.kind,
        "avatar": call.avatar,
        "began": round(call.began, 2),
        "ended": None if call.ended is None else round(call.ended, 2),
        "outcome": call.outcome or "cut short",
        "detail": call.detail,
        "stalls": [[round(at, 2), round(seconds, 3)] for at, seconds in call.stalls],
    }


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    names = "".join(f"<th>{escape(str(name))}</th>" for name in head)
    return f"<table><tr>{names}</tr>{body}</table>"


def _words(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in given.items())


def _commit() -> str:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607  whichever git there is
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    for line in known.read_text().splitlines() if known.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


_STYLE = """<style>
body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:62em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.15em .7em;border-bottom:1px solid #ddd;
text-align:right}td:first-child,th:first-child{text-align:left}svg{display:block;margin:1em 0}
text{font:11px system-ui,sans-serif;fill:#444}
</style>"""
