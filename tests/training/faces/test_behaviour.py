"""Heads behave as people do, and exactly as their seed says."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.faces.behaviour import Motion, perform
from training.data.faces.draw import uniform
from training.data.faces.expression import MOUTH, Expression


def _act(
    *, seeds: int = 8, seconds: float = 60.0, liveliness: float = 1.0, speaking: float = 0.0
) -> Expression:
    frames = round(seconds * 25)
    motion = Motion(torch.arange(seeds), torch.full((seeds,), liveliness), torch.zeros(seeds))
    mouth = torch.zeros(seeds, frames, len(MOUTH))
    return perform(motion, mouth, torch.full((seeds, frames), speaking))


def _blinks(closed: Tensor) -> Tensor:
    """How often each row closes its eyes."""
    shut = closed > 0.5
    return (shut[:, 1:] & ~shut[:, :-1]).sum(1)


def test_blinks_come_as_often_as_peoples() -> None:
    per_minute = _blinks(_act().blink).float()
    assert (per_minute >= 10).all()
    assert (per_minute <= 30).all()


def test_a_still_head_still_blinks() -> None:
    act = _act(liveliness=0.0)
    for field in (act.yaw, act.pitch, act.roll, act.shift_x, act.shift_y):
        assert field.abs().max() == 0
    assert (_blinks(act.blink) > 5).all()


def test_heads_move_smoothly_and_not_far() -> None:
    act = _act(speaking=1.0)
    assert act.yaw.abs().max() < 0.3
    assert act.yaw.std() > 0.03
    for field in (act.yaw, act.pitch, act.roll):
        assert field.diff(dim=1).abs().max() < 0.03  # radians in a frame


def test_listeners_nod_and_smile_more() -> None:
    listening, speaking = _act(), _act(speaking=1.0)
    assert listening.smile.mean() > speaking.smile.mean()
    assert listening.pitch.diff(dim=1).abs().mean() > speaking.pitch.diff(dim=1).abs().mean()


def test_emphasis_raises_brows() -> None:
    frames = 500
    motion = Motion(torch.arange(16), torch.ones(16), torch.zeros(16))
    mouth = torch.zeros(16, frames, len(MOUTH))
    loud = mouth.clone()
    loud[..., 0] = 0.6
    talking = torch.ones(16, frames)
    assert perform(motion, loud, talking).brow.mean() > perform(motion, mouth, talking).brow.mean()


def test_seeds_differ_and_repeat() -> None:
    first, second = _act(seconds=4), _act(seconds=4)
    assert torch.equal(first.yaw, second.yaw)
    assert not torch.equal(first.yaw[0], first.yaw[1])


def test_draws_do_not_depend_on_company() -> None:
    seeds = torch.arange(1000)
    together = uniform(seeds, "anything")
    assert torch.equal(together[137:138], uniform(seeds[137:138], "anything"))
    assert 0.45 < together.mean() < 0.55
    assert 0.27 < together.std() < 0.31
    pair = torch.stack([together, uniform(seeds, "something else")])
    assert torch.corrcoef(pair)[0, 1].abs() < 0.1
