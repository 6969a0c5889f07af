"""Faces on the grid of tokens; avatars that stay and avatars that leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.score.avatars import AvatarShelf, face_mask, padded
from services.score.checks import check_avatar
from services.score.contract import Avatar, LogTail, Rectangle
from services.score.engine import Limits
from talkingmachines.errors import BadInput, NoCapacity
from tests.score import calls, small
from tests.score.calls import Call


def test_tokens_whose_middle_lies_in_the_face() -> None:
    mask = face_mask(Rectangle(0.25, 0.0, 0.75, 0.5), (4, 4))
    expected = torch.zeros(4, 4)
    expected[:2, 1:3] = 1
    assert torch.equal(mask, expected)


@given(st.floats(0, 0.99), st.floats(0.001, 0.01), st.floats(0, 0.99), st.floats(0.001, 0.01))
def test_no_face_is_too_small(left: float, width: float, top: float, height: float) -> None:
    face = Rectangle(left, top, left + width, top + height)
    assert face_mask(face, (8, 8)).sum() >= 1


def test_a_mask_is_taken_as_it_is() -> None:
    mask = torch.rand(4, 2)
    assert torch.equal(face_mask(mask, (4, 2)), mask)


def test_prompts_are_filled_up_with_zeros() -> None:
    text = torch.ones(2, 3)
    assert padded(text, 4).tolist() == [[1] * 3] * 2 + [[0] * 3] * 2


class Ledger:
    """What a worker would hold."""

    def __init__(self, nbytes: int = 10) -> None:
        self.held: list[str] = []
        self.nbytes = nbytes
        self.added = 0

    def add(self, avatar: Avatar) -> int:
        self.held.append(avatar.digest)
        self.added += 1
        return self.nbytes

    def drop(self, digest: str) -> None:
        self.held.remove(digest)


def named(digest: str) -> Avatar:
    return Avatar(digest, torch.zeros(1))


def test_the_one_not_used_for_longest_leaves_first() -> None:
    ledger = Ledger()
    shelf = AvatarShelf(budget=25, add=ledger.add, drop=ledger.drop)
    for name in ("a", "b", "a"):
        shelf.take(named(name))
        shelf.give_back(name)
    shelf.take(named("c"))
    assert ledger.held == ["a", "c"]
    stats = shelf.stats()
    assert (stats.hits, stats.misses, stats.evictions) == (1, 3, 1)
    assert (stats.avatars, stats.nbytes) == (2, 20)


def test_those_in_use_never_leave() -> None:
    ledger = Ledger()
    shelf = AvatarShelf(budget=25, add=ledger.add, drop=ledger.drop)
    shelf.take(named("a"))
    shelf.take(named("a"))
    shelf.take(named("b"))
    with pytest.raises(NoCapacity):
        shelf.take(named("c"))
    assert ledger.held == ["a", "b"]
    shelf.give_back("a")
    with pytest.raises(NoCapacity):
        shelf.take(named("c"))
    shelf.give_back("a")
    shelf.take(named("c"))
    assert ledger.held == ["b", "c"]


def test_nobody_leaves_for_one_that_is_refused() -> None:
    ledger = Ledger()
    shelf = AvatarShelf(budget=25, add=ledger.add, drop=ledger.drop)
    shelf.take(named("used"))
    shelf.take(named("kept"))
    shelf.give_back("kept")
    ledger.nbytes = 16
    two_prompts = replace(named("big"), listening_text=torch.zeros(1))
    for _ in range(2):
        with pytest.raises(NoCapacity):
            shelf.take(two_prompts)
    assert ledger.held == ["used", "kept"]
    assert ledger.added == 3, "once its size is known, it is refused without being computed"
    shelf.give_back("used")
    shelf.take(two_prompts)
    assert ledger.held == ["big"]


def test_one_that_can_never_fit_is_not_told_to_come_again() -> None:
    ledger = Ledger(nbytes=30)
    shelf = AvatarShelf(budget=25, add=ledger.add, drop=ledger.drop)
    for _ in range(2):
        with pytest.raises(BadInput, match="avatar: expected at most 25 bytes"):
            shelf.take(named("a"))
    assert ledger.held == []
    assert ledger.added == 1


def test_what_is_kept_under_a_digest_is_compared_whole() -> None:
    ledger = Ledger()
    shelf = AvatarShelf(budget=25, add=ledger.add, drop=ledger.drop)
    shelf.take(named("a"))
    with pytest.raises(BadInput, match=r"avatar\.digest"):
        shelf.take(replace(named("a"), anchor=torch.ones(1)))
    shelf.give_back("a")
    with pytest.raises(BadInput, match=r"avatar\.digest"):
        shelf.take(replace(named("a"), faces=(Rectangle(0, 0, 1, 1),)))


def test_sessions_of_one_avatar_share_its_caches() -> None:
    config = small.config()
    engine = calls.engine(config)
    for name in ("one", "two", "three"):
        Call(config, name).open(engine)
    stats = engine.stats().avatars
    assert (stats.hits, stats.misses, stats.avatars) == (2, 1, 1)
    assert stats.nbytes > 0


def test_an_avatar_that_left_comes_back_the_same() -> None:
    config = small.config()
    engine = calls.engine(config, limits=Limits(avatar_bytes=1))
    with pytest.raises(BadInput, match="at most 1 bytes"):
        Call(config).open(engine)
    engine = calls.engine(config)
    one = engine.stats().avatars.nbytes
    call = Call(config)
    call.open(engine)
    one = engine.stats().avatars.nbytes
    tight = calls.engine(config, limits=Limits(avatar_bytes=one))
    call = Call(config)
    call.open(tight)
    before = call.draw(tight)
    tight.close(call.name)
    tight.open("other", calls.avatar(config, "bob"), seed=1, tail=LogTail())
    tight.close("other")
    assert tight.stats().avatars.evictions == 1
    again = Call(config)
    again.open(tight)
    assert torch.equal(again.draw(tight), before)


GOOD = calls.avatar(small.config())
WRONG: dict[str, dict[str, Any]] = {
    r"avatar\.anchor": {"anchor": torch.zeros(4, 3, 8, 4)},
    r"avatar\.anchor: .*65504, got": {"anchor": torch.full_like(GOOD.anchor, torch.inf)},
    r"avatar\.anchor: .*beyond 65504": {"anchor": torch.full_like(GOOD.anchor, 3e38)},
    r"avatar\.anchor: .*real": {"anchor": GOOD.anchor.to(torch.complex64)},
    r"avatar\.text: .*beyond 65504": {"text": torch.full((2, 12), 1e5)},
    r"avatar\.clip: .*beyond 65504": {"clip": torch.full((5, 10), -1e300, dtype=torch.float64)},
    r"avatar\.faces: .*none": {"faces": ()},
    r"avatar\.faces\[0\]": {"faces": (Rectangle(0.5, 0, 0.5, 1),)},
    r"avatar\.faces\[0\]: .*mask": {"faces": (torch.full((4, 2), 2.0),)},
    r"avatar\.text: .*nothing": {"text": None},
    r"avatar\.text: .*1 to 6": {"text": torch.zeros(7, 12)},
    r"avatar\.listening_text": {"listening_text": torch.zeros(2, 13)},
    r"avatar\.clip: .*nothing": {"clip": None},
    r"avatar\.clip: .*shape": {"clip": torch.zeros(5, 11)},
}


@pytest.mark.parametrize("message", WRONG)
def test_avatars_that_do_not_fit_are_refused(message: str) -> None:
    check_avatar(GOOD, small.config())
    with pytest.raises(BadInput, match=message):
        check_avatar(replace(GOOD, **WRONG[message]), small.config())


def test_a_prompt_for_a_model_that_reads_none_is_refused() -> None:
    with pytest.raises(BadInput, match="reads no text"):
        check_avatar(GOOD, small.config(text=None))


def test_listening_uses_the_prompt_for_listening() -> None:
    config = small.config()
    one, two = calls.engine(config), calls.engine(config)
    plain = calls.avatar(config)
    both = replace(plain, digest="both", listening_text=plain.text)
    drawn = []
    for engine, who in ((one, plain), (two, both)):
        call = Call(config)
        engine.open(call.name, who, seed=1, tail=LogTail())
        drawn.append(call.draw(engine, 4))
    assert torch.equal(drawn[0][:3], drawn[1][:3])
    assert (drawn[0][3] - drawn[1][3]).abs().max() > 1e-3, "chunk 3 is listened through"
