"""The figures in README.md and docs/performance.md, from the results: python -m benchmarks.render

Tables stand between two comments, `<!-- NAME -->` and `<!-- /NAME -->`; nothing in them is written
by hand. `--check` says whether they are what the results say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import FOLDER, Figure, Result, read

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/performance.md")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the README's table."""

    what: str
    benchmark: str
    figure: str


README = (
    Row("score: denoising a chunk of 480 ms, shipped model, one core", "figure3", "denoise"),
    Row("score: its context pass, after the latents have left", "figure3", "context"),
    Row("VAE: decoding that chunk, one core", "figure3", "decode"),
    Row("time between chunks, one core does both", "figure3", "period, self-contained"),
    Row("time between chunks, score and VAE on a core each", "figure3", "period, disaggregated"),
    Row("decoding that lies under the drawing of other chunks", "overlap",
        "decoding under drawing"),
    Row("Ray, gRPC, copies and Python beside the engines' work, of a core", "fleet",
        "overhead of a call, of a core"),
    Row("first frame of a call, whole fleet, warm", "fleet", "first frame of a call"),
    Row("start of the whole fleet", "fleet", "start of the whole fleet"),
    Row("calls of 512 x 512 at 16 fps that one core of gateway carries", "gateway",
        "sessions per core"),
    Row("gateway's memory for one of them", "gateway", "memory of a session"),
)  # fmt: skip


def readme(folder: Path = FOLDER) -> str:
    results = {row.benchmark: read(row.benchmark, folder) for row in README}
    rows = []
    for row in README:
        result = results[row.benchmark]
        if result is not None and row.figure in result.figures:
            command = result.run["command"].partition(" --")[0]
            rows.append((row.what, value(result.figures[row.figure]), f"`{command}`"))
    known = [result for result in results.values() if result is not None]
    return table(("", "", "measured by"), rows) + "\n\n" + _where(known)


def _where(results: Sequence[Result]) -> str:
    machines = sorted({f"{r.machine['cores']} cores of an {r.machine['processor']}, "
                       f"torch {r.machine['torch']}" for r in results})  # fmt: skip
    commits = sorted({result.run["commit"] for result in results})
    days = sorted({result.run["when"][:10] for result in results})
    return f"On {'; '.join(machines)}; {', '.join(days)}, commit {', '.join(commits)}."


def value(figure: Figure) -> str:
    number = f"{figure.value:.0f}" if abs(figure.value) >= 100 else f"{figure.value:g}"
    return f"{number} {figure.unit}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ---- docs/performance.md ----


def _plain(result: Result) -> str:
    """All figures of a benchmark."""
    rows = [(name, value(figure)) for name, figure in result.figures.items()]
    return table(("", ""), rows)


def _cores(result: Result) -> str:
    cores: Mapping[str, Any] = result.details["cores"]
    names = ("latency", "period", "denoise", "context", "decode")
    rows = [
        (name, *(f"{found[what]:.0f}" if found else "needs a third core" for what in names))
        for name, found in cores.items()
    ]
    head = ("arrangement", "latency, ms", "between chunks, ms", "denoise", "context", "decode")
    return table(head, rows)


def _gpus(result: Result) -> str:
    rows = []
    for side, found in result.details["gpus"].items():
        for row in found:
            latency, period = (_range(row[what]) for what in ("latency_ms", "period_ms"))
            used = f"{row['gpus']} ({row['used']} used)" if row["used"] < row["gpus"] else ""
            gpus, sessions = used or str(row["gpus"]), str(row["sessions"])
            rows.append((f"{side} x {side}", row["arrangement"], gpus, latency, period, sessions))
    head = ("picture", "arrangement", "GPUs", "latency, ms", "between chunks, ms", "calls")
    return table(head, rows)


def _range(middle_low_high: Sequence[float]) -> str:
    middle, low, high = middle_low_high
    return f"{middle} ({min(low, high)} to {max(low, high)})"


def _inputs(result: Result) -> str:
    rows = [
        (
            name,
            f"{given['middle']:g} ({given['high']:g} to {given['low']:g}) {given['unit']}",
            given["source"],
            "yes" if given["measured"] else "no",
        )
        for name, given in result.details["inputs"].items()
    ]
    return table(("input", "value (fast to slow end)", "from", "measured by this project"), rows)


def _gateway(result: Result) -> str:
    columns = {
        "sessions": "calls at once",
        "piece_ms": "speech in pieces of, ms",
        "gateway_cores": "gateway, cores",
        "event_loop_cores": "of it its event loop",
        "processor_ms_per_session_second": "ms a second of a call",
        "sessions_per_core": "calls per core",
        "frames_of_wanted": "frames that came, of those wanted",
        "held_seconds_per_session_minute": "picture held, s a minute",
        "gateway_mib": "memory, MiB",
    }
    rows = [[f"{row[name]:g}" for name in columns] for row in result.details["rows"]]
    return table(columns.values(), rows)


def _fleet(result: Result) -> str:
    found = result.details
    costs: Mapping[str, float] = found["overhead_ms_per_second"]
    idle, memory = found["idle_ms_per_second"], found["memory_mib"]
    rows = [
        (kind, f"{cost:g}", f"{idle.get(kind, 0):g}", str(memory.get(kind, "-")))
        for kind, cost in costs.items()
    ]
    rows.append(("together", f"{sum(costs.values()):.1f}", f"{sum(idle.values()):.1f}",
                 str(sum(memory.values()))))  # fmt: skip
    head = ("process", "for one call, ms a second", "when nobody calls, ms a second", "memory, MiB")
    return table(head, rows)


def _way(result: Result) -> str:
    rows = [(what.strip(), f"{ms:g}") for what, ms in result.details["chunk_ms"].items()]
    return table(("a chunk's time on the clock", "ms"), rows)


BLOCKS: Mapping[str, tuple[str, Callable[[Result], str]]] = {
    "figure3-cores": ("figure3", _cores),
    "figure3-gpus": ("figure3", _gpus),
    "figure3-inputs": ("figure3", _inputs),
    "overlap": ("overlap", _plain),
    "gateway": ("gateway", _gateway),
    "fleet": ("fleet", _fleet),
    "way": ("fleet", _way),
    "fleet-figures": ("fleet", _plain),
    "score": ("score-tiny-cpu", _plain),
    "vae": ("vae-tiny-cpu", _plain),
}


def block(name: str, folder: Path = FOLDER) -> str:
    """A table of docs/performance.md, and where it comes from."""
    benchmark, make = BLOCKS[name]
    result = read(benchmark, folder)
    if result is None:
        return f"Not measured yet (`{benchmark}`)."
    run, machine = result.run, result.machine
    source = (
        f"*`{run['command']}`, {run['when'][:16]}, commit {run['commit']}; {machine['cores']} cores"
        f" of an {machine['processor']}, load before {machine.get('load', 'unknown')}*"
    )
    return f"{make(result)}\n\n{source}"


# ---- Pages ----


def rendered(page: str, folder: Path = FOLDER) -> str:
    """A page as it should be.

    Raises:
        ValueError: a comment that names no table, or has no end.
    """
    text = (ROOT / page).read_text()
    for name in re.findall(r"<!-- ([a-z0-9-]+) -->", text):
        if name != "figures" and name not in BLOCKS:
            raise ValueError(f"{page}: no table is called {name}")
        made = readme(folder) if name == "figures" else block(name, folder)
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(pattern, lambda m: f"{m[1]}{made}\n{m[2]}", text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise ValueError(f"{page}: expected <!-- {name} --> and <!-- /{name} --> once")
    return text


def main() -> None:
    stale = [page for page in PAGES if rendered(page) != (ROOT / page).read_text()]
    if "--check" in sys.argv[1:]:
        if stale:
            sys.exit(f"{', '.join(stale)}: not what the results say; python -m benchmarks.render")
        return
    for page in stale:
        (ROOT / page).write_text(rendered(page))
        print("written:", page)


if __name__ == "__main__":
    main()
