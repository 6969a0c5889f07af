"""Noise as a function of (seed, chunk, step): the same numbers on every machine, for ever.

Beside `denoise.py`. A chunk that is computed again elsewhere must be the same chunk, so nothing
here may depend on a device, a library's version or what was drawn before:

- bits come from Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)
  keyed by the three numbers; numpy guarantees the bits of its bit generators (NEP 19), though not
  of its distributions;
- they become normal by the inverse of the normal distribution (Wichura, algorithm AS 241, 1988),
  computed with +, -, ×, ÷ and square roots alone, which IEEE 754 rounds exactly; numpy's own
  logarithm may differ in the last bit from one processor to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Reals = NDArray[np.float64]

# AS 241 (PPND16), relative accuracy about 1e-16: numerator and denominator, constant term first.
_CENTRE: Final = (
    (
        3.3871328727963666080, 1.3314166789178437745e2, 1.9715909503065514427e3,
        1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
        3.3430575583588128105e4, 2.5090809287301226727e3,
    ),
    (
        1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
        2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)  # fmt: skip
_NEAR: Final = (
    (
        1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550,
        3.64784832476320460504, 1.27045825245236838258, 2.41780725177450611770e-1,
        2.27238449892691845833e-2, 7.74545014278341407640e-4,
    ),
    (
        1.0, 2.05319162663775882187, 1.67638483018380384940, 6.89767334985100004550e-1,
        1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)  # fmt: skip
_FAR: Final = (
    (
        6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580,
        2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
        2.71155556874348757815e-5, 2.01033439929228813265e-7,
    ),
    (
        1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
        7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)  # fmt: skip
_LN2: Final = 0.6931471805599453


def noise(seed: int, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers [shape] float32 on the CPU.

    Args:
        seed: of the session, 0 to 2**64 - 1.
        chunk: number of the chunk, 0 to 2**56 - 1.
        step: denoising step, 0 to 255.
    """
    assert 0 <= seed < 2**64, seed
    assert 0 <= chunk < 2**56, chunk
    assert 0 <= step < 256, step
    key = np.array([seed, chunk << 8 | step], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=0).random_raw(math.prod(shape))
    # The middle of one of 2**53 cells: never 0 or 1, and the difference to 1/2 is exact.
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.from_numpy(_normal(uniform).astype(np.float32)).view(tuple(shape))


def _normal(p: _Reals) -> _Reals:
    """The number below which a standard normal variable lies with probability `p` in (0, 1)."""
    q = p - 0.5
    out: _Reals = q * _ratio(_CENTRE, 0.180625 - q * q)
    tail = np.flatnonzero(np.abs(q) > 0.425)
    r = np.sqrt(-_log(np.minimum(p[tail], 1 - p[tail])))
    size = np.where(r <= 5, _ratio(_NEAR, r - 1.6), _ratio(_FAR, r - 5))
    out[tail] = np.where(q[tail] < 0, -size, size)
    return out


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], x: _Reals) -> _Reals:
    numerator, denominator = (_polynomial(terms, x) for terms in polynomials)
    out: _Reals = numerator / denominator
    return out


def _polynomial(terms: tuple[float, ...], x: _Reals) -> _Reals:
    total = np.full_like(x, terms[-1])
    for term in reversed(terms[:-1]):
        total = total * x + term
    return total


def _log(x: _Reals) -> _Reals:
    """Natural logarithm of positive normal numbers, by its series around 1."""
    mantissa, exponent = np.frexp(x)  # mantissa in [1/2, 1)
    low = mantissa < 0.7071067811865476
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    s = (mantissa - 1) / (mantissa + 1)  # |s| < 0.172, so twelve odd powers reach 1e-20
    series = _polynomial(tuple(2.0 / (2 * n + 1) for n in range(12)), s * s)
    out: _Reals = exponent * _LN2 + s * series
    return out
