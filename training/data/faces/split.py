"""Which identities are for training and which are held out.

Held out twice: by number (the two splits own different ranges of seeds) and by look (test
identities live in a corner of the space of shapes that training never enters).
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from training.data.faces.draw import uniform


class Split(Enum):
    """Who may learn from an identity."""

    TRAIN = "train"
    TEST = "test"


_TEST_SEEDS = 1 << 30  # training owns the numbers below, testing those above
_CORNER = 0.72  # all of `_CORNERED` above this share of their range: never seen in training
_CORNERED = ("eye_x", "mouth_width")


def identity_seed(split: Split, number: Tensor) -> Tensor:
    """Seed (int64) of the identity `number` (0 <= number < 2^30) of a split."""
    first = 0 if split is Split.TRAIN else _TEST_SEEDS
    return number.to(torch.int64) % _TEST_SEEDS + first


def split_of(seed: Tensor) -> Tensor:
    """True where a seed belongs to the test split; bool, its shape."""
    return seed >= _TEST_SEEDS


def cornered(seed: Tensor) -> dict[str, Tensor]:
    """Shares of their ranges, in 0..1, for the traits that define the held-out corner."""
    shares = {name: uniform(seed, name) for name in _CORNERED}
    inside, test = in_corner(shares), split_of(seed)
    return {
        name: torch.where(
            test, _CORNER + (1 - _CORNER) * share, torch.where(inside, 1 - share, share)
        )
        for name, share in shares.items()
    }


def in_corner(shares: dict[str, Tensor]) -> Tensor:
    """Whether shares (as `cornered` gives them) lie in the held-out corner; bool, their shape."""
    return torch.stack([share > _CORNER for share in shares.values()]).all(0)
