"""The loop around every training script: the clock, checkpoints, logs, pictures.

A run lives in a directory and has a budget of minutes; it may be cut and called again as often as
one likes, and goes on where it was. All randomness of a step is a function of (seed, step), so the
position in the data is the number of the step, and a resumed run is the uninterrupted one.

    directory/checkpoint.pt   everything; written beside and renamed, so never half
    directory/log.jsonl       one line per report: losses, rate, minutes
    directory/sheet-*.png     what the task wants to be seen
    directory/export/         the model as `services` reads it, from the running mean
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from training.sheet import write_png

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True, slots=True)
class Draw:
    """The random numbers of one step."""

    host: torch.Generator  # for which data
    device: torch.Generator  # for noise, where the model is


def draw(seed: int, step: int, device: torch.device) -> Draw:
    """The same numbers for the same step, whatever happened before."""
    own = (seed << 40) + 2 * step
    host, there = torch.Generator().manual_seed(own), torch.Generator(device)
    return Draw(host, there.manual_seed(own + 1))


class Task(Protocol):
    """What a script trains. It owns models and data; the loop owns time and files."""

    device: torch.device

    def step(self, draw: Draw, progress: float) -> Mapping[str, Tensor]:
        """Learn once, `progress` (0..1) of the way through; named numbers for the log."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def sheet(self) -> tuple[Tensor, Mapping[str, float]]:
        """A uint8 picture [3, H, W] of how it is going, and numbers to go with it."""
        ...

    def export(self, directory: Path) -> None:
        """Write what was learned in the layout that serving reads."""
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a run is. It ends when `minutes` or `steps` are used up, over all its calls."""

    minutes: float
    steps: int | None = None
    call_minutes: float | None = None  # of one call; the next one goes on
    report_minutes: float = 1.0  # between lines of the log
    save_minutes: float = 5.0  # between checkpoints, each with a sheet and an export

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        """What `asked` reads."""
        add = parser.add_argument
        add("--minutes", type=float, required=True, help="of training, over all calls")
        add("--call-minutes", type=float, help="end this call earlier")
        add("--save-minutes", type=float, default=5.0, help="between checkpoints (%(default)s)")
        add("--steps", type=int, help="of training, over all calls, if that is less")

    @classmethod
    def asked(cls, asked: argparse.Namespace) -> Budget:
        """As the command line says."""
        return cls(
            asked.minutes,
            steps=asked.steps,
            call_minutes=asked.call_minutes,
            save_minutes=asked.save_minutes,
        )

    def progress(self, step: int, minutes: float) -> float:
        """Share of the run that is done, 0..1."""
        share = minutes / self.minutes
        return min(1.0, share if self.steps is None else max(share, step / self.steps))


@dataclass(slots=True)
class _Meter:
    """Sums of what steps report, on the device until somebody asks."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    steps: int = 0

    def add(self, numbers: Mapping[str, Tensor]) -> None:
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
            self.counts[name] += 1
        self.steps += 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}


class Run:
    """One run of `task` in `directory`."""

    def __init__(
        self, task: Task, directory: Path, budget: Budget, *, seed: int, clock: Clock
    ) -> None:
        self.task, self.directory, self.budget, self.seed = task, directory, budget, seed
        self._clock = clock
        self.step, self._minutes_before = 0, 0.0
        self._called = clock()
        directory.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._resume()

    @property
    def minutes(self) -> float:
        """Spent on this run, over all calls."""
        return self._minutes_before + self._call_minutes

    @property
    def progress(self) -> float:
        return self.budget.progress(self.step, self.minutes)

    def go(self) -> bool:
        """Train until the run or this call is over, a step at least. Whether the run is."""
        meter, reported, saved = _Meter(), self.minutes, self.minutes
        over = self.progress >= 1
        while not over:
            meter.add(self.task.step(draw(self.seed, self.step, self.task.device), self.progress))
            self.step += 1
            over = self.progress >= 1 or self._call_over
            if self.minutes - reported >= self.budget.report_minutes:
                self._report(meter, self.minutes - reported)
                meter, reported = _Meter(), self.minutes
            if self.minutes - saved >= self.budget.save_minutes:
                self.save()
                saved = self.minutes
        if meter.steps:
            self._report(meter, self.minutes - reported)
        self.save()
        return self.progress >= 1

    def save(self) -> None:
        """Checkpoint, sheet and export."""
        state = {"task": self.task.state(), "step": self.step, "minutes": self.minutes}
        unfinished = self._checkpoint.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(self._checkpoint)
        picture, numbers = self.task.sheet()
        write_png(picture, self.directory / f"sheet-{self.step:07d}.png")
        self.task.export(self.directory / "export")
        self._log({"judged": dict(numbers)})

    @property
    def _checkpoint(self) -> Path:
        return self.directory / "checkpoint.pt"

    @property
    def _call_minutes(self) -> float:
        return (self._clock() - self._called) / 60

    @property
    def _call_over(self) -> bool:
        limit = self.budget.call_minutes
        return limit is not None and self._call_minutes >= limit

    def _resume(self) -> None:
        state = torch.load(self._checkpoint, map_location=self.task.device, weights_only=True)
        self.task.restore(state["task"])
        self.step, self._minutes_before = state["step"], state["minutes"]

    def _report(self, meter: _Meter, minutes: float) -> None:
        rate = meter.steps / max(60 * minutes, 1e-9)
        self._log({**meter.means(), "steps_per_second": rate})

    def _log(self, numbers: Mapping[str, object]) -> None:
        line = {"step": self.step, "minutes": round(self.minutes, 3), **numbers}
        with (self.directory / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        sys.stdout.write(_readable(line) + "\n")
        sys.stdout.flush()


def run(
    task: Task, directory: Path, budget: Budget, *, seed: int = 0, clock: Clock = time.monotonic
) -> bool:
    """Train `task`, taking up what `directory` holds. Whether the run is complete."""
    return Run(task, directory, budget, seed=seed, clock=clock).go()


def _readable(line: Mapping[str, object]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in line.items())


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + _readable(value) + "}"
    return str(value)
