"""Results as they are kept: benchmarks/results/NAME.json, all of one shape.

    benchmark, run, machine    what ran, when, of which commit, on what
    figures                    by name: value, unit, and whether less or more is better
    details                    whatever else the benchmark found, in its own shape

`figures` are what runs are compared by and what the README shows; so their names stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.machine import CPU, describe, describe_run

FOLDER = Path(__file__).parent / "results"
SLOWER = 1.15  # times the last figure: beyond it somebody should look


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that is worth following."""

    value: float
    unit: str
    better: Literal["less", "more"] = "less"


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found."""

    benchmark: str
    run: Mapping[str, Any]
    machine: Mapping[str, Any]
    figures: Mapping[str, Figure]
    details: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path = FOLDER) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.benchmark}.json"
        path.write_text(json.dumps(asdict(self), indent=1, default=_plain) + "\n")
        return path


def record(
    name: str,
    figures: Mapping[str, Figure],
    details: Mapping[str, Any],
    *,
    device: torch.device = CPU,
) -> Path:
    """Write what was found here and now over what was found last."""
    return Result(name, describe_run(), describe(device), figures, details).write()


def read(name: str, folder: Path = FOLDER) -> Result | None:
    """What was found last; None when nothing was.

    Raises:
        ValueError: the file has another shape.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    held = json.loads(path.read_text())
    try:
        figures = {what: Figure(**figure) for what, figure in held.pop("figures").items()}
        return Result(**held, figures=figures)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no result: {error}") from error


def names(folder: Path = FOLDER) -> list[str]:
    """Of all results; reports of `loadtest` lie beside them, in a shape of their own."""
    return sorted(p.stem for p in folder.glob("*.json") if not p.stem.startswith("load-"))


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure beside the last one of its name."""

    name: str
    before: Figure
    now: Figure

    @property
    def slower(self) -> float:
        """Times worse; below 1 it is better."""
        worse, better = self.now.value, self.before.value
        if self.now.better == "more":
            worse, better = better, worse
        if worse == better:
            return 1.0
        return worse / better if better > 0 else float("inf")

    @property
    def alarming(self) -> bool:
        return self.slower > SLOWER


def ratios(before: Result, now: Result) -> Iterator[Ratio]:
    """Of every figure that both have; in one unit only, else it is another figure."""
    for name, figure in now.figures.items():
        last = before.figures.get(name)
        if last is not None and last.unit == figure.unit:
            yield Ratio(f"{now.benchmark}: {name}", last, figure)


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch."""
    return value.item() if hasattr(value, "item") else str(value)
