"""However often a run is cut, it is the same run."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor, nn

from training.learner import Learner, Recipe, schedule
from training.run import Budget, Draw, draw, run
from training.sheet import grid, write_png

RECIPE = Recipe(rate=1e-2, matrix_rate=1e-2, warm_up=3)


class Regression:
    """Learns a fixed linear map from random points: a task that has everything a real one has."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))})
        self.learner = Learner(layers, RECIPE)
        self.seen: list[float] = []

    def step(self, draw: Draw, progress: float) -> Mapping[str, Tensor]:
        self.seen.append(progress)
        x = torch.randn(5, 4, generator=draw.host)
        x = x + 0.1 * torch.randn(5, 4, generator=draw.device)
        layers = self.learner.model
        assert isinstance(layers, nn.ModuleDict)
        loss = (layers["blocks"](x) - x.flip(1)).square().mean()
        return {"loss": loss, "norm": self.learner.descend(loss, progress)}

    def state(self) -> dict[str, Any]:
        return {"learner": self.learner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state["learner"])

    def sheet(self) -> tuple[Tensor, Mapping[str, float]]:
        return grid([torch.zeros(2, 3, 4, 6)]), {"score": 1.0}

    def export(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        with self.learner.averaged() as model:
            torch.save(model.state_dict(), directory / "weights.pt")

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.learner.model.named_parameters()}


class Ticks:
    """A clock that moves a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize("seconds", [1, 20, 40])
def test_resumed_equals_uninterrupted(tmp_path: Path, seconds: float) -> None:
    """Calls end after so many looks at the clock; the plan, in steps, does not know."""
    whole = Regression()
    run(whole, tmp_path / "whole", Budget(minutes=1e9, steps=12))
    budget = Budget(minutes=1e9, steps=12, call_minutes=seconds / 60)
    calls, done, last = 0, False, Regression()
    while not done:
        last = Regression()
        done = run(last, tmp_path / "cut", budget, clock=Ticks())
        calls += 1
    assert calls > 1
    for name, weight in whole.weights().items():
        assert torch.equal(weight, last.weights()[name]), name
    with whole.learner.averaged() as ours, last.learner.averaged() as theirs:
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, other)


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    task = Regression()
    budget = Budget(minutes=1e9, steps=300, report_minutes=1, save_minutes=3)
    assert run(task, tmp_path, budget, clock=Ticks())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.2 * losses[0]
    assert [line["minutes"] for line in lines] == sorted(line["minutes"] for line in lines)
    assert lines[-1]["judged"] == {"score": 1.0}
    assert torch.load(tmp_path / "export" / "weights.pt")["blocks.0.weight"].shape == (8, 4)
    assert len(list(tmp_path.glob("sheet-*.png"))) > 1


def test_a_budget_of_minutes_counts_over_all_calls(tmp_path: Path) -> None:
    budget = Budget(minutes=4, call_minutes=1, report_minutes=0.5, save_minutes=10)
    calls, seen = 1, Regression()
    while not run(seen, tmp_path, budget, clock=Ticks()):
        calls += 1
        seen = Regression()
    assert calls >= 3
    assert seen.seen[0] > 0.5
    assert seen.seen == sorted(seen.seen)


def test_a_step_draws_what_it_drew_before() -> None:
    first, again, other = (draw(7, step, torch.device("cpu")) for step in (4, 4, 5))
    a, b, c = (torch.randn(3, generator=d.host) for d in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, torch.randn(3, generator=first.device))


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(rate=1.0, warm_up=4, hold=0.5)
    assert [schedule(recipe, step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule(recipe, 9, 0.5) == 1.0
    assert schedule(recipe, 9, 0.75) == pytest.approx(0.5)
    assert schedule(recipe, 9, 1.0) == pytest.approx(0.02)


def test_a_sheet_is_a_png_with_its_pixels(tmp_path: Path) -> None:
    picture = (torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 255).byte()
    write_png(picture, tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", raw[16:24]) == (7, 5)
    with av.open(str(tmp_path / "a.png")) as file:
        frame = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert torch.equal(torch.from_numpy(frame), picture.permute(1, 2, 0))
