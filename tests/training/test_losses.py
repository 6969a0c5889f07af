"""Losses on cases that can be computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from services.score.config import ScheduleConfig
from services.score.denoise import clean_from, levels, noised, velocity_from
from tests.training import small
from training import losses


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
@pytest.mark.parametrize("level", [0.02, 0.5, 0.75, 1.0])
def test_conversions_invert_each_other(prediction: str, level: float) -> None:
    config = small.dit(prediction=prediction)
    clean, noise, anchor = (
        normal(2, 4, 3, 2, 2),
        normal(2, 4, 3, 2, 2, seed=1),
        normal(2, 4, 1, 2, 2),
    )
    x = noised(clean, noise, level)
    said = noise - clean if prediction == "velocity" else clean - anchor
    torch.testing.assert_close(clean_from(config, said, x, level, anchor), clean)
    torch.testing.assert_close(velocity_from(config, said, x, level, anchor), noise - clean)
    exact = torch.tensor(level, dtype=x.dtype)
    torch.testing.assert_close(losses.noise_in(x, clean, exact), noise)


def test_flow_is_the_squared_error_of_the_velocity() -> None:
    clean, noise, wrong = normal(3, 5), normal(3, 5, seed=1), normal(3, 5, seed=2)
    level = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)
    x = noised(clean, noise, losses.per_row(level, clean))
    believed = x - losses.per_row(level, x) * wrong
    by_hand = (wrong - (noise - clean)).square().mean()
    torch.testing.assert_close(losses.flow(believed, clean, level), by_hand)


def test_weights_and_floor() -> None:
    clean, believed = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    loss = losses.flow(
        believed, clean, torch.tensor([1.0, 0.001]), weight=torch.tensor([0.0, 2.0]), floor=0.5
    )
    assert loss == pytest.approx((2 * 4 + 2 * 16 / 0.25) / 4)


def test_shift_is_the_schedule_that_serving_uses() -> None:
    plain = (1.0, 0.5, 0.25)
    served = levels(ScheduleConfig(levels=plain, shift=3.0))
    torch.testing.assert_close(losses.shifted(torch.tensor(plain), 3.0), torch.tensor(served))


def test_the_sampler_with_the_true_velocity_keeps_a_gaussian() -> None:
    """Flow toward N(2, 0.5²) by its exact velocity, from pure noise, in small Euler steps."""
    mean, deviation, steps = 2.0, 0.5, 200
    x = normal(40_000)
    for step in range(steps):
        s, after = 1 - step / steps, 1 - (step + 1) / steps
        spread = ((1 - s) * deviation) ** 2 + s**2
        offset = x - (1 - s) * mean
        clean = mean + (1 - s) * deviation**2 * offset / spread
        noise = s * offset / spread
        x = x + (after - s) * (noise - clean)
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)
    assert float(x.std()) == pytest.approx(deviation, abs=0.02)


def believed_by(mean: float, x: Tensor, s: Tensor) -> Tensor:
    """E[x0 | x] when clean values are N(mean, 1)."""
    return mean + (1 - s) * (x - (1 - s) * mean) / ((1 - s) ** 2 + s**2)


def test_dmd_points_from_the_student_to_the_teacher() -> None:
    """Student N(m, 1), teacher N(0, 1): the scores differ by m (1 - s) / ((1 - s)² + s²)."""
    m, s = 1.5, torch.tensor(0.6, dtype=torch.float64)
    made = m + normal(8, 1000)
    x = noised(made, normal(8, 1000, seed=1), s)
    true, fake = believed_by(0.0, x, s), believed_by(m, x, s)
    direction = losses.dmd_direction(made, true, fake)
    # x0' - x0 = m (1 - (1 - s)² / ((1 - s)² + s²)) for every sample.
    difference = m * float(s**2 / ((1 - s) ** 2 + s**2))
    expected = difference / (made - true).abs().mean(1, keepdim=True)
    torch.testing.assert_close(direction, expected.expand_as(direction))
    assert bool((direction > 0).all())


def test_dmd_is_silent_when_student_and_teacher_agree() -> None:
    made = normal(4, 100)
    x = noised(made, normal(4, 100, seed=1), 0.5)
    s = torch.tensor(0.5, dtype=torch.float64)
    direction = losses.dmd_direction(made, believed_by(0.0, x, s), believed_by(0.0, x, s))
    assert not direction.any()


def test_the_gradient_of_dmd_is_its_direction() -> None:
    made, direction = normal(2, 3).requires_grad_(), normal(2, 3, seed=1)
    torch.autograd.backward(losses.dmd(made, direction))
    assert made.grad is not None
    torch.testing.assert_close(made.grad, direction / 6)


def test_a_hundred_steps_of_dmd_move_the_student_to_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    m = torch.tensor(2.0, requires_grad=True)
    optimiser = torch.optim.SGD([m], lr=0.1)
    for _ in range(100):
        made = m + torch.randn(256, 1, generator=generator)
        s = 0.02 + 0.96 * torch.rand(256, 1, generator=generator)
        with torch.no_grad():
            x = noised(made, torch.randn(256, 1, generator=generator), s)
            true, fake = believed_by(0.0, x, s), believed_by(float(m), x, s)
        direction = losses.dmd_direction(made, true, fake)
        optimiser.zero_grad()
        torch.autograd.backward(losses.dmd(made, direction))
        optimiser.step()
    assert abs(float(m.detach())) < 0.05


def test_guidance() -> None:
    conditional, null = normal(3), normal(3, seed=1)
    torch.testing.assert_close(losses.guided(conditional, null, 1.0), conditional)
    torch.testing.assert_close(losses.guided(conditional, null, 0.0), null)
    doubled = losses.guided(conditional, null, 2.0)
    torch.testing.assert_close(doubled, 2 * conditional - null)


def test_regression_is_square_near_zero_and_absolute_far_away() -> None:
    zero = torch.zeros(1)
    assert float(losses.regression(torch.tensor([0.01]), zero)) == pytest.approx(5e-5, rel=1e-2)
    assert float(losses.regression(torch.tensor([100.0]), zero)) == pytest.approx(99, rel=1e-2)


def test_reconstruction_counts_steps_between_neighbours() -> None:
    true = torch.zeros(1, 2, 2)
    made = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    # One pixel of four is off by 1; one of two steps across, one of two steps down.
    assert losses.reconstruction(made, true) == pytest.approx(0.25 + 0.25 + 0.25)
    assert losses.reconstruction(made + 3, true + 3) == pytest.approx(0.75)
    nowhere = losses.reconstruction(made, true, weight=torch.zeros(1, 2, 2))
    assert nowhere == 0


def test_divergence_of_a_standard_normal_is_zero() -> None:
    assert losses.divergence(torch.zeros(3), torch.zeros(3)) == 0
    shifted = losses.divergence(torch.ones(3), torch.full((3,), math.log(4.0)))
    assert shifted == pytest.approx(0.5 * (1 + 4 - 1 - math.log(4)))
