"""Rendered clips are functions of their scene, and their truth is what the pixels show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from talkingmachines.errors import BadInput
from tests.training.faces.conftest import opening_and_closing, scene
from training.data.faces.clip import Clip, reference, render
from training.data.faces.expression import MOUTH
from training.data.faces.family import Family
from training.data.faces.truth import mouth_weights

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


@pytest.mark.parametrize("identity", [0, 11, 15, (1 << 30) + 2])
def test_opening_in_truth_is_opening_in_pixels(family: Family, identity: int) -> None:
    clip = render(scene(family, [identity], opening_and_closing(11)), 192)
    seen, told = _hole(clip, 0), clip.truth.opening[0]
    assert torch.corrcoef(torch.stack([seen, told]))[0, 1] >= 0.98
    order = told.argsort()
    assert (seen[order].diff() >= -1).all()  # within a pixel


def test_opening_follows_the_control(family: Family) -> None:
    clip = render(scene(family, [21], opening_and_closing(11)), 32)
    opening = clip.truth.opening[0]
    assert (opening[:6].diff() > 0).all()
    assert (opening[5:].diff() < 0).all()


def test_closed_lips_show_no_cavity(family: Family) -> None:
    """Neither at rest nor pressed together, whatever the jaw does behind them."""
    mouth = torch.zeros(2, len(MOUTH))
    mouth[1, MOUTH.index("open")] = mouth[1, MOUTH.index("press")] = 1.0
    clip = render(scene(family, [30, 31, 32], mouth), 128)
    assert clip.truth.opening.max() < 0.004
    opened = render(scene(family, [30, 31, 32], opening_and_closing(3)[1:2]), 128)
    for row in range(3):
        assert _hole(clip, row).max() < 1.5  # the dark line between them
        assert _hole(opened, row).min() > 4


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


def _hole(clip: Clip, row: int) -> Tensor:
    """Mean height in pixels of what is seen between the lips, about the middle, per frame [T].

    Cavity and tongue's shadow are much darker than the lower lip, teeth much whiter.
    """
    size = clip.frames.shape[-1]
    frames, lips = clip.frames[row].float(), clip.truth.lips
    middle = (lips.lower_in[row, :, 4] + lips.lower_out[row, :, 4]) / 2
    heights = []
    for now, frame in enumerate(frames):
        x, y = (middle[now] * size).long().tolist()
        lip = frame[:, y, x]
        left, right = (lips.upper_in[row, now, 3:6:2, 0] * size).long().tolist()
        top = int(lips.upper_out[row, now, 4, 1] * size) + 1
        bottom = int(lips.lower_out[row, now, 4, 1] * size)
        part = frame[:, top:bottom, left : right + 1]
        hole = (part.mean(0) < 0.45 * lip.mean()) | (part.amin(0) > lip.amin() + 45)
        heights.append(hole.float().sum(0).mean())
    return torch.stack(heights)


def _mouth_motion(clip: Clip) -> float:
    size = clip.frames.shape[-1]
    left, top, right, bottom = (clip.truth.mouth_box[0].mean(0) * size).long().tolist()
    box = clip.frames[0, :, :, top : bottom + 1, left : right + 1].float()
    return float(box.diff(dim=0).abs().mean())
