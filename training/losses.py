"""The losses of the method, as pure functions of tensors.

Under every training script; nothing here knows a model, a device or a data set. Wan's convention
throughout: `x = (1 - s) x0 + s e` at noise level s in [0, 1], velocity `v = e - x0`. Every loss of
a flow is written on the clean picture `x0` that a model believes in, whatever it predicts.

Sources: rectified flow (Liu et al., arXiv 2209.03003), shifted levels (Esser et al., arXiv
2403.03206), distribution matching (Yin et al., arXiv 2311.18828 and 2405.14867), guidance (Ho &
Salimans, arXiv 2207.12598), variational autoencoder (Kingma & Welling, arXiv 1312.6114).

Legend: B batch rows; `...` whatever a row consists of. Levels [B] belong to rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_row(level: Tensor, x: Tensor) -> Tensor:
    """Levels [B], shaped to broadcast over the rows of `x` [B, ...]."""
    return level.view(-1, *(1,) * (x.dim() - 1))


def shifted(level: Tensor, shift: float) -> Tensor:
    """Levels moved toward noise: `k s / (1 + (k - 1) s)`."""
    return shift * level / (1 + (shift - 1) * level)


def noise_in(x: Tensor, clean: Tensor, level: Tensor) -> Tensor:
    """The noise `e` that makes `x` of `clean` at `level`, which is above 0."""
    return (x - (1 - level) * clean) / level


def flow(
    believed: Tensor,
    clean: Tensor,
    level: Tensor,
    *,
    weight: Tensor | None = None,
    floor: float = 0.05,
) -> Tensor:
    """Flow matching: the mean squared error of the velocity, seen from the clean picture.

    With `x` given, `v - v' = (x0' - x0) / s`. Below `floor` the division is by the floor, since
    the error of a model that predicts clean pictures does not vanish with the level.

    Args:
        believed: the clean picture that the model reads out of `x` [B, ...].
        clean: the true one [B, ...].
        level: [B].
        weight: broadcasts over the rows; has mean 1 if the scale is to stay.
    """
    error = (believed - clean).square() / per_row(level.clamp(min=floor), clean).square()
    return _mean(error, weight)


def regression(made: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Pseudo-Huber distance: squares for small errors, so that few large ones do not rule."""
    return _mean(((made - target).square() + 1).sqrt() - 1, weight)


def guided(conditional: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance; 1 is no guidance. Linear, so any of x0, e and v may be guided."""
    return null + scale * (conditional - null)


def dmd_direction(made: Tensor, believed_true: Tensor, believed_fake: Tensor) -> Tensor:
    """Where distribution matching pushes `made` (against it, as a gradient), without gradient.

    The difference of two scores at one noised point of the student's output is, up to a factor of
    the level, the difference of the clean pictures that teacher and fake score read out of it. It
    is normalised per row by how far the teacher is from the sample (DMD, eq. 8), so that all
    levels count alike.
    """
    with torch.no_grad():
        rows = tuple(range(1, made.dim()))
        distance = (made - believed_true).abs().mean(rows, keepdim=True)
        return (believed_fake - believed_true) / distance.clamp(min=1e-6)


def dmd(made: Tensor, direction: Tensor) -> Tensor:
    """A loss whose gradient by `made` is `direction` over the number of values."""
    target = (made - direction).detach()
    return 0.5 * (made - target).square().mean()


def reconstruction(made: Tensor, true: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Absolute error of pixels and, half as much, of the steps between neighbours.

    Frames are [..., H, W]. Steps carry edges, which absolute error alone lets blur.
    """
    error = made - true
    across, down = error.diff(dim=-1), error.diff(dim=-2)
    total = _mean(error.abs(), weight)
    total = total + 0.5 * _mean(across.abs(), None if weight is None else weight[..., 1:])
    return total + 0.5 * _mean(down.abs(), None if weight is None else weight[..., 1:, :])


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the posterior from a standard normal, per value."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def _mean(error: Tensor, weight: Tensor | None) -> Tensor:
    return error.mean() if weight is None else (error * weight).mean()
