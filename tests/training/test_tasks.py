"""Every stage learns, resumes as if never cut, and leaves what serving reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.score.checkpoint.loading import load, load_front_end
from services.score.checkpoint.opening import open_checkpoint
from services.score.model import Dit
from tests.training import small
from training.distil import Distillation, DmdTask, Origin, RegressionTask
from training.flow import Flow, FlowLoss, conditions, initialised
from training.flow_task import FlowTask
from training.learner import Recipe
from training.mouth_reader import LatentReader
from training.run import Budget, Task, draw, run
from training.student import ablated

# Norms keep float32 weights under autocast: exact, if not fused.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

CPU = torch.device("cpu")
RECIPE = Recipe(rate=3e-3, matrix_rate=3e-3, warm_up=2)


def fresh(seed: int = 0) -> Dit:
    torch.manual_seed(seed)
    return initialised(Dit(small.dit()))


def flow(sight: str, own_contexts: tuple[float, float] = (0.0, 0.0)) -> Task:
    torch.manual_seed(1)
    reader = LatentReader(4, 4, width=8).eval().requires_grad_(False)
    return FlowTask(
        fresh(),
        sight,  # type: ignore[arg-type]
        FlowLoss(deaf=0.3, blind=0.3),
        RECIPE,
        supply=small.supply(),
        rows=2,
        device=CPU,
        reader=(reader, 0.5) if sight == "causal" else None,
        own_contexts=own_contexts,
    )


def teacher() -> Origin:
    return Origin(Flow(fresh(7).requires_grad_(False), "whole"), steps=2)


def regression() -> Task:
    return RegressionTask(fresh(), teacher(), RECIPE, supply=small.supply(), rows=2)


def dmd() -> Task:
    ways = Distillation(fake_updates=2)
    return DmdTask(fresh(), fresh(7), teacher(), ways, RECIPE, supply=small.supply(), rows=2)


TASKS: dict[str, Callable[[], Task]] = {
    "teacher": lambda: flow("whole"),
    "student": lambda: flow("causal"),
    "student on its own contexts": lambda: flow("causal", (1.0, 0.5)),
    "regression": regression,
    "dmd": dmd,
}


@pytest.mark.parametrize("name", TASKS)
def test_a_run_that_is_cut_goes_on(name: str, tmp_path: Path) -> None:
    whole = TASKS[name]()
    run(whole, tmp_path / "whole", Budget(1e9, steps=3))
    once = Budget(1e9, steps=3, call_minutes=0)
    while not run(last := TASKS[name](), tmp_path / "cut", once):
        pass
    ours, theirs = (flattened(task.state()) for task in (whole, last))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
    checkpoint = open_checkpoint(tmp_path / "cut" / "export")
    assert load(checkpoint, device=CPU, dtype=torch.float32).config == small.dit()
    assert load_front_end(checkpoint, device=CPU).config == small.FRONT_END


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_flow_matching_learns(name: str) -> None:
    """Two clips can be learned by heart."""
    task = TASKS[name]()
    losses = [float(task.step(draw(0, step, CPU), 0.0)["flow"]) for step in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_student_learns_only_now_and_then_and_its_fake_score_always() -> None:
    task = dmd()
    seen = [set(task.step(draw(0, step, CPU), 0.5)) for step in range(4)]
    learns, follows = {"matched", "regression", "gradient", "fake"}, {"fake"}
    assert seen == [learns, follows, learns, follows]


@pytest.mark.parametrize(("latents_per_chunk", "anchor_channels"), [(1, True), (3, False)])
def test_an_ablation_goes_on_from_the_same_weights(
    latents_per_chunk: int, anchor_channels: bool
) -> None:
    whole = fresh()
    less = ablated(whole, latents_per_chunk=latents_per_chunk, anchor_channels=anchor_channels)
    assert less.config.stream.latents_per_chunk == latents_per_chunk
    ours, theirs = whole.state_dict(), less.state_dict()
    entry = "patch_embedding.weight"
    assert torch.equal(theirs.pop(entry), ours.pop(entry)[:, : less.config.in_channels])
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    clips, heard = small.clips(2, 2), less.config.hearing
    assert heard is not None
    window = slice(heard.before + heard.per_chunk + heard.after)
    clips = replace(
        clips, embeddings=clips.embeddings[:, :, window], heard=clips.heard[:, :, window]
    )
    noisy, level = clips.latents[:, :, :, :latents_per_chunk], torch.ones(2)
    seen = Flow(less, "causal").believed(noisy, level, conditions(less, clips), context=noisy)
    assert seen.shape == noisy.shape


def flattened(tree: object, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nest of dicts and lists, by its path."""
    match tree:
        case torch.Tensor():
            return {path: tree}
        case dict():
            branches = tree.items()
        case list():
            branches = dict(enumerate(tree)).items()
        case _:
            return {}
    found: dict[str, torch.Tensor] = {}
    for key, value in branches:
        found |= flattened(value, f"{path}/{key}")
    return found
