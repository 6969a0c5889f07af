"""Rendered clips are functions of their scene, and their truth is what the pixels show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from talkingmachines.errors import BadInput
from tests.training.faces.conftest import opening_and_closing, scene
from training.data.faces.clip import Clip, reference, render
from training.data.faces.expression import MOUTH, Expression
from training.data.faces.family import Family, renderer
from training.data.faces.truth import Truth, mouth_weights

_SILENCE = torch.zeros(6, len(MOUTH))


def test_same_scene_same_pixels(family: Family) -> None:
    asked = scene(family, [3, 4], opening_and_closing(3), liveliness=1.0)
    first, second = render(asked, 64), render(asked, 64)
    assert torch.equal(first.frames, second.frames)
    assert torch.equal(first.truth.opening, second.truth.opening)


@pytest.mark.parametrize("size", [48, 81, 128])
def test_any_size(family: Family, size: int) -> None:
    clip = render(scene(family, [5], opening_and_closing(2)), size)
    assert clip.frames.shape == (1, 2, 3, size, size)
    assert clip.frames.dtype == torch.uint8
    assert clip.frames.float().std() > 20  # a picture, not a colour


def test_batch_equals_single(family: Family) -> None:
    mouth = opening_and_closing(3)
    together = render(scene(family, [8, 9, 10], mouth, liveliness=1.0), 64)
    for row, identity in enumerate((8, 9, 10)):
        alone = render(scene(family, [identity], mouth, liveliness=1.0), 64)
        difference = (alone.frames[0].int() - together.frames[row].int()).abs()
        assert difference.max() <= 1
        torch.testing.assert_close(alone.truth.opening[0], together.truth.opening[row])


def test_a_clip_can_be_continued_from_its_middle(family: Family) -> None:
    whole = render(scene(family, [12], _SILENCE, liveliness=1.0, speaking=0.0), 64)
    rest = render(scene(family, [12], _SILENCE[4:], liveliness=1.0, start=0.16, speaking=0.0), 64)
    assert (whole.frames[:, 4:].int() - rest.frames.int()).abs().max() <= 1


@pytest.mark.parametrize("identity", [0, 15, (1 << 30) + 2])
def test_opening_in_truth_is_opening_in_pixels(family: Family, identity: int) -> None:
    frames, truth = _made_up(family, identity, opening_and_closing(7), 192)
    seen, told = _hole(frames, truth), truth.opening[0]
    assert torch.corrcoef(torch.stack([seen, told]))[0, 1] >= 0.98
    assert (seen[told.argsort()].diff() >= 0).all()
    assert (seen - told * 192).abs().max() < 2  # pixels


def test_opening_follows_the_control(family: Family) -> None:
    clip = render(scene(family, [21], opening_and_closing(11)), 32)
    opening = clip.truth.opening[0]
    assert (opening[:6].diff() > 0).all()
    assert (opening[5:].diff() < 0).all()


@pytest.mark.parametrize("identity", [30, 31, 32])
def test_closed_lips_show_no_cavity(family: Family, identity: int) -> None:
    """Neither at rest nor pressed together, whatever the jaw does behind them."""
    mouth = torch.zeros(3, len(MOUTH))
    mouth[1, MOUTH.index("open")] = mouth[1, MOUTH.index("press")] = 1.0
    mouth[2, MOUTH.index("open")] = 1.0
    frames, truth = _made_up(family, identity, mouth, 128)
    assert truth.opening[0, :2].max() < 0.004
    hole = _hole(frames, truth)
    assert hole[:2].max() == 0
    assert hole[2] > 6


def test_silence_keeps_the_mouth_still(family: Family) -> None:
    quiet = render(scene(family, [40], _SILENCE, speaking=0.0), 64)
    talk = render(scene(family, [40], opening_and_closing(6)), 64)
    assert quiet.truth.opening.max() < 0.004
    assert _mouth_motion(quiet) <= 0.1 * _mouth_motion(talk)


def test_identity_does_not_change_with_time(family: Family) -> None:
    """What does not move looks the same an hour later."""
    early = render(scene(family, [50], _SILENCE[:1]), 64).frames[0, 0].int()
    late = render(scene(family, [50], _SILENCE[:1], start=3600.0), 64).frames[0, 0].int()
    other = render(scene(family, [51], _SILENCE[:1]), 64).frames[0, 0].int()
    assert (early - late).abs().float().mean() < 4
    assert (early - other).abs().float().mean() > 12


def test_reference_is_the_same_person_at_another_moment(family: Family) -> None:
    asked = scene(family, [60, 61], opening_and_closing(2), liveliness=1.0)
    clip, picture = render(asked, 64), reference(asked, 64)
    assert picture.shape == (2, 3, 64, 64)
    own = (picture.int() - clip.frames[:, 0].int()).abs().float().mean((1, 2, 3))
    other = (picture.flip(0).int() - clip.frames[:, 0].int()).abs().float().mean((1, 2, 3))
    assert (own > 0.2).all()
    assert (own < other).all()


def test_boxes_hold_what_they_name(family: Family) -> None:
    truth = render(scene(family, [70, 71], opening_and_closing(5), liveliness=1.0), 48).truth
    left, top, right, bottom = truth.mouth_box.unbind(-1)
    for line in (truth.lips.upper_out, truth.lips.lower_out):
        assert (line[..., 0] >= left[..., None]).all()
        assert (line[..., 0] <= right[..., None]).all()
        assert (line[..., 1] >= top[..., None]).all()
        assert (line[..., 1] <= bottom[..., None]).all()
    face = truth.face_box[:, None]
    assert (face[..., :2] <= truth.mouth_box[..., :2]).all()
    assert (face[..., 2:] >= truth.mouth_box[..., 2:] - 0.03).all()


def test_mouth_is_large_enough(family: Family) -> None:
    truth = render(scene(family, list(range(8)), _SILENCE[:1]), 32).truth
    assert (truth.width >= 52 / 256).all()


def test_weights_are_highest_on_the_mouth(family: Family) -> None:
    truth = render(scene(family, [80], _SILENCE[:1]), 32).truth
    weights = mouth_weights(truth, 40, 5.0)
    assert weights.shape == (1, 1, 40, 40)
    x, y = (truth.lips.upper_in[0, 0, 4] * 40).long().tolist()
    assert weights[0, 0, y, x] == 5
    assert weights[0, 0, 0, 0] < 1.01


def test_a_scene_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match="mouth"):
        scene(Family.STYLISED, [1], torch.zeros(4, 5))


def _made_up(family: Family, identity: int, mouth: Tensor, size: int) -> tuple[Tensor, Truth]:
    """Frames [T, 3, H, W] in 0..255 and truth of a face with green lips.

    Shape and motion are the identity's; only paint is changed, so that pixels can be told apart.
    """
    drawer = renderer(family)
    one = drawer.traits(torch.tensor([identity]))
    traits = {name: value.expand(len(mouth), *value.shape[1:]) for name, value in one.items()}
    for name, colour in (("skin", (0.93, 0.78, 0.70)), ("lip", (0.15, 0.80, 0.20))):
        traits[name] = torch.tensor(colour).expand(len(mouth), 3)
    for name in ("gloss", "beard", "stubble", "moustache"):
        traits[name] = torch.zeros(len(mouth))
    moment = Expression.still(len(mouth))
    now = replace(moment, **{name: mouth[:, k] for k, name in enumerate(MOUTH)})
    with torch.no_grad():
        frames = drawer.draw(traits, now, size) * 255
        lips, face = drawer.landmarks(traits, now)
    return frames, Truth.of(lips.by_clip(1), face[None])


def _hole(frames: Tensor, truth: Truth) -> Tensor:
    """Mean height in pixels of what is seen between green lips, about the middle, per frame [T]."""
    size, lips = frames.shape[-1], truth.lips
    heights = []
    for now, frame in enumerate(frames):
        left, right = (lips.upper_in[0, now, 3:6:2, 0] * size).long().tolist()
        top = int(lips.upper_out[0, now, 4, 1] * size) + 3
        bottom = int(lips.lower_out[0, now, 4, 1] * size) - 2
        part = frame[:, top:bottom, left : right + 1]
        hole = part[1] < 1.2 * part[0]
        heights.append(hole.float().sum(0).mean())
    return torch.stack(heights)


def _mouth_motion(clip: Clip) -> float:
    size = clip.frames.shape[-1]
    left, top, right, bottom = (clip.truth.mouth_box[0].mean(0) * size).long().tolist()
    box = clip.frames[0, :, :, top : bottom + 1, left : right + 1].float()
    return float(box.diff(dim=0).abs().mean())
