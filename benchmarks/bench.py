"""Everything that fits a small machine in 15 minutes: python -m benchmarks.bench [--only NAME ...]

`make bench`. Every benchmark is a process of its own and writes its result over its last one; then
both are compared, and the pages that show figures are rendered anew.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from benchmarks import render
from benchmarks.record import SLOWER, Ratio, Result, names, ratios, read


@dataclass(frozen=True, slots=True)
class Run:
    """One benchmark's command, and how long it may take."""

    command: str
    seconds: float


RUNS = {
    "gateway": Run("gateway --sessions 50 --seconds 15 --pieces 0.1 0.02", 180),
    "fleet": Run("fleet --seconds 20", 240),
    "figure3": Run("figure3 --chunks 15", 240),
    "overlap": Run("overlap --chunks 30", 180),
    "score": Run("score --preset tiny --dtype bfloat16 --rows 4 --chunks 12", 240),
    "vae": Run("vae --runs 5 --name vae-tiny-cpu --case tiny-192px-1t --case tiny-256px-1t", 240),
    "serving": Run("score_serving", 180),
    "bridge": Run("bridge hibari", 240),
}


def run(name: str) -> bool:
    """Whether it ran to its end."""
    what, began = RUNS[name], monotonic()
    print(f"== {name}: python -m benchmarks.{what.command}", flush=True)
    command = [sys.executable, "-m", *shlex.split(f"benchmarks.{what.command}")]
    try:
        done = subprocess.run(command, timeout=what.seconds, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        done = False
    print(f"== {name}: {'done' if done else 'FAILED'} in {monotonic() - began:.0f} s", flush=True)
    return done


def compared(before: Sequence[Result | None], after: Sequence[Result | None]) -> Iterator[Ratio]:
    """Figures of results that are new, beside those of the last ones."""
    for old, new in zip(before, after, strict=True):
        if old is not None and new is not None and old != new:
            yield from ratios(old, new)


def lines(found: Sequence[Ratio]) -> Iterator[str]:
    """A table for the terminal; the worst first."""
    for ratio in sorted(found, key=lambda ratio: -ratio.slower):
        last, now = render.value(ratio.before), render.value(ratio.now)
        mark = "  <-- worse" if ratio.alarming else ""
        yield f"{ratio.slower:6.2f} x   {last:>16} -> {now:<16} {ratio.name}{mark}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=RUNS, nargs="+", default=list(RUNS))
    asked = parser.parse_args()
    before = {name: read(name) for name in names()}
    failed = [name for name in asked.only if not run(name)]
    after = {name: read(name) for name in names()}
    found = list(compared([before.get(name) for name in after], list(after.values())))
    print("\ntimes worse than the last result (below 1: better)")
    print(*lines(found), sep="\n")
    if _other_machine(before, after):
        print("another machine than last time: the ratios say little")
    render.main()
    if any(ratio.alarming for ratio in found):
        print(f"worse than {SLOWER} times: look at it, or run it again on a quiet machine")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _other_machine(before: dict[str, Result | None], after: dict[str, Result | None]) -> bool:
    def machine(result: Result | None) -> tuple[object, ...]:
        return () if result is None else tuple(result.machine[k] for k in ("processor", "device"))

    return any(before.get(name) and machine(before[name]) != machine(after[name]) for name in after)


if __name__ == "__main__":
    main()
