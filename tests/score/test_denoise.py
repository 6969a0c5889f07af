"""Levels, conversions and the sampler, on cases that can be computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from services.score.config import ScheduleConfig
from services.score.denoise import clean_from, levels, noised, sample, velocity_from
from tests.score import small


def test_published_levels() -> None:
    assert levels(ScheduleConfig((1.0, 0.5), shift=3)) == (1.0, 0.75)
    assert levels(ScheduleConfig((1.0, 0.5), shift=5)) == pytest.approx((1.0, 0.8333333))
    four = levels(ScheduleConfig((1.0, 0.75, 0.5, 0.25), shift=5))
    assert four == pytest.approx((1.0, 0.9375, 0.8333333, 0.625))


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
@pytest.mark.parametrize("level", [1.0, 0.75, 0.01])
def test_clean_and_velocity_agree(prediction: Literal["velocity", "clean"], level: float) -> None:
    config = small.config(prediction=prediction)
    x0, e = torch.randn(2, 4, 3, 8, 4), torch.randn(2, 4, 3, 8, 4)
    anchor = torch.randn(2, 4, 1, 8, 4)
    x = noised(x0, e, level)
    right = e - x0 if prediction == "velocity" else x0 - anchor
    torch.testing.assert_close(clean_from(config, right, x, level, anchor), x0)
    velocity = velocity_from(config, right, x, level, anchor)
    # Of clean latents it is a difference divided by the level.
    torch.testing.assert_close(velocity, e - x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_perfect_student_of_a_gaussian_samples_that_gaussian(
    prediction: Literal["velocity", "clean"], steps: int
) -> None:
    """x0 ~ N(m, d²): where the flow carries x_s is known, and any number of steps keeps m and d."""
    mean, spread = 2.0, 0.5
    schedule = ScheduleConfig(tuple(1 - n / steps for n in range(steps)), shift=3)
    config = replace(small.config(prediction=prediction), schedule=schedule)
    anchor = torch.full((1, 1, 1, 1, 1), 0.3)

    def predict(x: Tensor, step: int) -> Tensor:
        s = levels(schedule)[step]
        x0 = mean + spread * (x - (1 - s) * mean) / math.hypot((1 - s) * spread, s)
        return (x - x0) / s if prediction == "velocity" else x0 - anchor

    noises = [torch.randn(1, 1, 1, 1, 50_000) for _ in range(steps)]
    out = sample(config, predict, noises, anchor)
    assert out.mean().item() == pytest.approx(mean, abs=0.02)
    assert out.std().item() == pytest.approx(spread, rel=0.02)


def test_first_step_starts_from_pure_noise_and_later_ones_from_the_belief() -> None:
    config = small.config(schedule=ScheduleConfig((1.0, 0.5), shift=3))
    noises = [torch.ones(1, 1, 1, 1, 1), torch.full((1, 1, 1, 1, 1), 10.0)]
    seen: list[float] = []

    def predict(x: Tensor, step: int) -> Tensor:
        seen.append(x.item())
        return torch.full_like(x, float(step + 1))

    out = sample(config, predict, noises, torch.zeros(1, 1, 1, 1, 1))
    # 1 → x0 = 1 - 1·1 = 0 → 0.25·0 + 0.75·10 = 7.5 → x0 = 7.5 - 0.75·2 = 6
    assert seen == [1.0, 7.5]
    assert out.item() == 6.0
