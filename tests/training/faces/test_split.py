"""Training never sees a test identity: not its number, not its corner of shapes."""

from __future__ import annotations

import torch

from training.data.faces.split import Split, cornered, identity_seed, in_corner, split_of

_MANY = torch.arange(20_000)


def test_seeds_are_disjoint() -> None:
    train, test = (identity_seed(split, _MANY) for split in (Split.TRAIN, Split.TEST))
    assert not set(train.tolist()) & set(test.tolist())
    assert not split_of(train).any()
    assert split_of(test).all()


def test_shapes_are_disjoint() -> None:
    train, test = (identity_seed(split, _MANY) for split in (Split.TRAIN, Split.TEST))
    assert not in_corner(cornered(train)).any()
    assert in_corner(cornered(test)).all()
