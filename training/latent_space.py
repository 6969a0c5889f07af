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
from services.vae.config import VaeConfig
from services.vae.model import Vae

_LOG_VARIANCE = -6.0  # of a fold's latents to begin with
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


@torch.no_grad()
def folded(pictures: Vae, config: VaeConfig, moments: Moments) -> Vae:
    """The VAE of `config`, which folds time, out of one that draws frame by frame; on the CPU.

    A latent holds the widest axes of its frames' codes, so of clips with such moments it keeps as
    much as any linear fold can. Convolutions that see a past begin without one.

    Args:
        pictures: towers as `config`'s, without fold and without a past.
        moments: of the raw latents of `pictures`, those of a latent's frames one after the other.
    """
    assert config.fold is not None, "only a fold has frames to put together"
    frames, codes = config.fold.frames, config.fold.channels
    _, axes = torch.linalg.eigh(moments.covariance)
    axes = axes.flip(1)[:, : config.latent_channels].float()  # [frames * codes, Z]
    mean = moments.mean.float()
    old = {name: value.detach().cpu().float() for name, value in pictures.state_dict().items()}
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Vae(config).state_dict().items()}
    towers = [name for name in shapes if name.partition(".")[0] in ("encoder", "decoder")]
    weights = {name: _without_past(old[name], shapes[name]) for name in towers}
    each = torch.eye(frames)
    into, bias = old["conv1.weight"].flatten(1)[:codes], old["conv1.bias"][:codes]
    out = old["conv2.weight"].flatten(1)
    means = axes.T @ torch.kron(each, into)
    moved = axes.T @ (bias.repeat(frames) - mean)
    weights["conv1.weight"] = _pointwise(torch.cat([means, torch.zeros_like(means)]))
    weights["conv1.bias"] = torch.cat([moved, torch.full_like(moved, _LOG_VARIANCE)])
    weights["conv2.weight"] = _pointwise(torch.kron(each, out) @ axes)
    weights["conv2.bias"] = torch.kron(each, out) @ mean + old["conv2.bias"].repeat(frames)
    return build(config, weights, "the folded model")


def _rotated(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x.flatten(1)).view_as(x) if x.dim() > 1 else matrix @ x


def _without_past(weight: Tensor, shape: torch.Size) -> Tensor:
    """A picture's weights as those of a layer that may see the past, and does not yet."""
    if weight.shape == shape:
        return weight
    wide = weight.new_zeros(shape)
    wide[:, :, -1:] = weight
    return wide


def _pointwise(matrix: Tensor) -> Tensor:
    return matrix[..., None, None, None]
