"""Small scenes that the tests of the renderers share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.data.faces.behaviour import Motion
from training.data.faces.clip import Scene
from training.data.faces.expression import MOUTH
from training.data.faces.family import Family

SceneMaker = Callable[..., Scene]


@pytest.fixture(params=list(Family), ids=lambda family: family.value)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


def opening_and_closing(frames: int) -> Tensor:
    """Mouth controls [frames, 6]: the jaw opens and closes once, everything else rests."""
    mouth = torch.zeros(frames, len(MOUTH))
    mouth[:, 0] = 0.5 - 0.5 * torch.cos(torch.arange(frames) / (frames - 1) * 6.2832)
    return mouth


def scene(
    family: Family,
    identities: list[int],
    mouth: Tensor,
    *,
    liveliness: float = 0.0,
    start: float = 0.0,
    speaking: float = 1.0,
) -> Scene:
    """Every identity does the same with its mouth, `mouth` [T, 6]."""
    clips, frames = len(identities), len(mouth)
    motion = Motion(
        torch.tensor(identities) + 77,
        torch.full((clips,), liveliness),
        torch.full((clips,), start),
    )
    return Scene(
        family,
        torch.tensor(identities),
        motion,
        mouth[None].expand(clips, -1, -1).clone(),
        torch.full((clips, frames), speaking),
    )
