"""A checkpoint that does not fit is refused with lists a person can act on."""

import pytest

from services.runtime.weights import BadCheckpoint, fit

EXPECTED = {"a.weight": (4, 2), "a.bias": (4,), "b.weight": (3,)}


def test_exact_fit_is_accepted() -> None:
    fit("x.safetensors", found=dict(EXPECTED), expected=EXPECTED)


def test_every_misfit_is_named() -> None:
    found = {"a.weight": (2, 4), "a.bias": (4,), "c.weight": (1,)}
    with pytest.raises(BadCheckpoint) as caught:
        fit("x.safetensors", found=found, expected=EXPECTED)
    assert caught.value.missing == ["b.weight"]
    assert caught.value.unexpected == ["c.weight"]
    assert "a.weight: got [2, 4], expected [4, 2]" in str(caught.value)
    assert "x.safetensors" in str(caught.value)


def test_long_lists_are_shortened_in_the_message_only() -> None:
    expected = {f"block.{n}.weight": (1,) for n in range(100)}
    with pytest.raises(BadCheckpoint, match=r"100 missing .* and 88 more") as caught:
        fit("x.safetensors", found={}, expected=expected)
    assert len(caught.value.missing) == 100
