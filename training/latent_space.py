"""The latent space as the transformer sees it: measured, turned to its axes, brought to scale.

Between training a VAE and everything that uses it. Turning is exact, since the layers next to the
latents are linear: the turned VAE draws the same pictures.

Legend: Z latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from services.vae.checkpoint import build
from services.vae.model import Vae

_FLOOR = 0.02  # of the widest axis: what varies less is scaled as if it varied so much


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and covariance of raw latents over their channels, float64."""

    mean: Tensor  # [Z]
    covariance: Tensor  # [Z, Z]

    @staticmethod
    def of(latents: Iterable[Tensor]) -> Moments:
        """Of raw latents [..., Z], in as many pieces as one likes."""
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for piece in latents:
            rows = piece.reshape(-1, piece.shape[-1]).double().cpu()
            count, total = count + len(rows), total + rows.sum(0)
            products = products + rows.T @ rows
        mean = total / count
        return Moments(mean, products / count - torch.outer(mean, mean))


@torch.no_grad()
def turned(vae: Vae, moments: Moments) -> Vae:
    """The same VAE, on the CPU, its latents along the axes on which they vary, the widest first.

    Axes are scaled by the square root of their deviation, so a wide one stays wider than a narrow
    one: what carries most of the picture then counts most in a loss on latents. The mean variance
    over all channels is 1.
    """
    spread, axes = torch.linalg.eigh(moments.covariance)
    spread, axes = spread.flip(0), axes.flip(1)
    deviation = spread.clamp(min=0).sqrt()
    scale = deviation.clamp(min=_FLOOR * float(deviation[0])).sqrt()
    scale = scale * (deviation / scale).square().mean().sqrt()
    weights = {
        name: value.detach().to("cpu", copy=True) for name, value in vae.state_dict().items()
    }
    channels = len(deviation)
    into, out = axes.T.float(), axes.float()
    for part in ("weight", "bias"):
        moment = weights[f"conv1.{part}"].float()
        mean, log_variance = moment[:channels], moment[channels:]
        # The log-variances of turned axes are no longer the posterior's; nothing reads them.
        weights[f"conv1.{part}"] = torch.cat([_rotated(into, mean), log_variance])
    last = weights["conv2.weight"].float()
    weights["conv2.weight"] = (last.flatten(1) @ out).view_as(last)
    config = replace(
        vae.config,
        latent_mean=tuple((into.double() @ moments.mean).tolist()),
        latent_std=tuple(scale.tolist()),
    )
    return build(config, weights, "the turned model")


def _rotated(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x.flatten(1)).view_as(x) if x.dim() > 1 else matrix @ x
