"""Grades on mouths whose faults are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.data.faces.expression import MOUTH
from training.grades import closures, reaction, sync, table
from training.measure import correlation, lag, psnr, ssim

PRESS = MOUTH.index("press")


def speech(frames: int = 200, rows: int = 2) -> Tensor:
    """Mouths that open and close, and press their lips together now and then."""
    generator = torch.Generator().manual_seed(0)
    controls = torch.rand(rows, frames, 6, generator=generator)
    time = torch.arange(frames)
    controls[..., 0] = 0.5 + 0.5 * torch.sin(time * 0.37) * torch.sin(time * 0.11 + 1)
    controls[..., PRESS] = (time % 25 < 3).float()
    return controls


def test_the_truth_gets_full_marks() -> None:
    grades = sync(speech(), speech())
    assert grades.apart == pytest.approx(1)
    assert (grades.lag_frames, grades.in_time, grades.closures) == (0, 1, 1)
    assert grades.gain == pytest.approx(1)


@pytest.mark.parametrize("late", [-3, 0, 2])
def test_a_late_mouth_is_late(late: int) -> None:
    asked = speech()
    grades = sync(asked.roll(late, 1), asked)
    assert grades.lag_frames == late
    assert grades.in_time == float(abs(late) <= 1)


def test_a_mumbling_mouth_has_no_gain_but_correlates() -> None:
    asked = speech()
    asked[..., PRESS] = 0
    seen = asked.clone()
    seen[..., 0] = 0.4 + 0.5 * (seen[..., 0] - 0.4)
    grades = sync(seen, asked)
    assert grades.gain == pytest.approx(0.5)
    assert grades.apart == pytest.approx(1)


def test_closures_that_are_missed_are_counted() -> None:
    asked = speech(rows=1)
    made = torch.ones(1, 200)
    assert closures(made, asked) == 0
    made[0, ::25] = 0
    assert closures(made, asked) == 1
    made[0, 100:] = 1
    assert closures(made, asked) == 0.5
    assert closures(made, torch.zeros(1, 200, 6)) == 1


def test_reaction_is_measured_from_when_it_is_due() -> None:
    asked, seen = torch.zeros(1, 100, 6), torch.zeros(1, 100, 6)
    asked[:, 40:, 0], seen[:, 47:, 0] = 0.8, 0.3
    assert reaction(seen, asked) == 7


def test_signal_to_noise() -> None:
    true = torch.zeros(1, 3, 8, 8)
    assert psnr(true + 0.2, true) == pytest.approx(20)
    half = torch.zeros(8, 8)
    half[:4] = 1
    made = true.clone()
    made[..., 4:, :] = 1
    assert psnr(made, true, mask=half) > 100
    assert psnr(made, true, mask=1 - half) == pytest.approx(6.02, abs=0.01)


def test_similarity_of_structure() -> None:
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(picture, picture) == pytest.approx(1)
    assert ssim(picture.flip(-1), picture) < 0.2


def test_correlation_of_what_does_not_move_is_zero() -> None:
    assert correlation(torch.ones(5), torch.arange(5.0)) == 0
    assert lag(torch.arange(20.0).sin(), torch.arange(20.0).sin()) == 0


def test_a_table_has_a_cell_for_every_heading() -> None:
    from training.grades import Grades

    row = Grades("m", sync(speech(), speech()), 0.01, 2.0, 40.0, 39.0, 0.001, 0.2)
    lines = table([row]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
