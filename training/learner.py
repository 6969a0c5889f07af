"""A model being trained: its optimisers, its learning rates, the running mean of its weights.

Under `run.py`, above every model. Matrices inside blocks may take Muon (orthogonalised momentum;
Jordan et al. 2024, github.com/KellerJordan/Muon), all else AdamW. The running mean is what is
looked at, exported and evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LOWEST = 0.02  # of the full learning rate, where a run ends


@dataclass(frozen=True, slots=True)
class Recipe:
    """How fast a model learns."""

    rate: float  # of AdamW
    matrix_rate: float | None = None  # of Muon, for matrices inside blocks; None: AdamW as well
    warm_up: int = 60  # steps
    hold: float = 0.3  # of the run at full rate; from there it falls linearly
    clip: float = 1.0  # largest norm of a gradient
    mean_decay: float = 0.995  # of the running mean, once there is something to average
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.97)


class Learner:
    """`model` and all that changes with it, step by step."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        self.steps = 0
        self._optimisers = _optimisers(model, recipe)
        self._mean = {name: p.detach().clone() for name, p in model.named_parameters()}

    def descend(self, loss: Tensor, progress: float) -> Tensor:
        """One step down `loss`, `progress` (0..1) of the way through the run.

        Returns:
            The norm of the gradient before it was clipped.
        """
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        part = schedule(self.recipe, self.steps, progress)
        for optimiser, full in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = full * part
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        self._average()
        return norm.detach()

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with its running mean for weights, without gradients, for a while."""
        own = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._put(self._mean)
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self._put(own)

    def state(self) -> dict[str, Any]:
        """Everything that another process needs to go on as this one would have."""
        return {
            "model": self.model.state_dict(),
            "mean": self._mean,
            "optimisers": [optimiser.state_dict() for optimiser, _ in self._optimisers],
            "steps": self.steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for name, value in state["mean"].items():
            self._mean[name].copy_(value)
        for (optimiser, _), saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.steps = state["steps"]

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.mean_decay, (1 + self.steps) / (10 + self.steps))
        names = list(self._mean)
        now = dict(self.model.named_parameters())
        torch._foreach_lerp_(
            [self._mean[name] for name in names], [now[name].detach() for name in names], 1 - decay
        )

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])


def schedule(recipe: Recipe, step: int, progress: float) -> float:
    """Share of the full learning rate: a warm-up in steps, a plateau, a linear fall."""
    falling = max(0.0, progress - recipe.hold) / (1 - recipe.hold)
    return min(1.0, (step + 1) / recipe.warm_up) * max(_LOWEST, 1 - falling)


def _optimisers(model: nn.Module, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each with its full learning rate. Every parameter that learns is in exactly one."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = (
        [] if recipe.matrix_rate is None else [n for n in learning if _is_matrix(n, learning)]
    )
    rest = [p for name, p in learning.items() if name not in matrices]
    adam = torch.optim.AdamW(
        rest, recipe.rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    made: list[tuple[torch.optim.Optimizer, float]] = [(adam, recipe.rate)]
    if matrices and recipe.matrix_rate is not None:
        muon = torch.optim.Muon(
            [learning[name] for name in matrices],
            recipe.matrix_rate,
            weight_decay=recipe.weight_decay,
            ns_steps=4,
            # The same rate then suits matrices of every shape (Liu et al., arXiv 2502.16982).
            adjust_lr_fn="match_rms_adamw",
        )
        made.append((muon, recipe.matrix_rate))
    return made


def _is_matrix(name: str, parameters: dict[str, nn.Parameter]) -> bool:
    return "blocks." in name and parameters[name].dim() == 2
