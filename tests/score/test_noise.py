"""Noise is a function: stored values hold for ever, and it is normal."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.score.noise import _log, _normal, noise


def test_stored_values() -> None:
    """Exact bits: if these change, a session no longer survives an upgrade."""
    first = ["-0x1.22cd1ap+1", "-0x1.671474p-1", "-0x1.380f16p+0", "0x1.4c209ap-3"]
    assert noise(0, 0, 0, (4,)).tolist() == [float.fromhex(x) for x in first]
    last = ["-0x1.d2b00ap+0", "-0x1.c1bca8p+0", "0x1.8c5688p+0", "-0x1.14bbp+1"]
    assert noise(2**64 - 1, 123_456_789, 7, (4,)).tolist() == [float.fromhex(x) for x in last]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 8))
def test_every_argument_matters_and_nothing_else(seed: int, chunk: int, step: int) -> None:
    here = noise(seed, chunk, step, (3, 5))
    assert torch.equal(here, noise(seed, chunk, step, (3, 5)))
    assert torch.equal(here.flatten(), noise(seed, chunk, step, (15,)))
    for other in ((seed ^ 1, chunk, step), (seed, chunk + 1, step), (seed, chunk, step + 1)):
        assert not torch.equal(here, noise(*other, (3, 5)))


def test_normal() -> None:
    x = torch.cat([noise(9, chunk, 0, (50_000,)) for chunk in range(4)]).double()
    n = len(x)
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(x.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    beyond = (x.abs() > 3).double().mean()
    assert abs(beyond - 0.0026998) < 5 * math.sqrt(0.0027 / n)


def test_chunks_and_steps_are_uncorrelated() -> None:
    rows = torch.stack([noise(4, c, s, (40_000,)) for c in range(3) for s in range(3)])
    correlation = torch.corrcoef(rows) - torch.eye(9)
    assert correlation.abs().max() < 5 / math.sqrt(40_000)


@pytest.mark.parametrize("p", [1e-16, 1e-9, 1e-3, 0.0749, 0.0751, 0.3, 0.5, 0.9, 0.9999, 1 - 1e-12])
def test_inverse_of_the_normal_distribution(p: float) -> None:
    expected = NormalDist().inv_cdf(p)
    assert _normal(np.array([p]))[0] == pytest.approx(expected, rel=1e-13, abs=1e-13)


def test_logarithm() -> None:
    x = np.exp(np.linspace(-40, 5, 10_001))
    np.testing.assert_allclose(_log(x), np.log(x), rtol=1e-14, atol=1e-15)
