"""Many-step sampling of whole clips, guided or not: what a teacher is asked for.

Beside `flow.py`. 12 steps with guidance are the 24 evaluations that distillation brings down to 2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from training import losses
from training.flow import Conditions, Flow, euler_levels
from training.latents import LatentClips


def whole_clip(
    flow: Flow,
    clips: LatentClips,
    given: Conditions,
    null: Conditions | None,
    *,
    steps: int,
    scale: float,
    generator: torch.Generator,
) -> Tensor:
    """Clips [B, K, C, F, h, w] drawn from noise by Euler steps.

    A causal model is given the real chunks as contexts: its own streams are `rollout.streamed`.

    Args:
        null: conditions without speech, for guidance by `scale`; None for none.
    """
    noise = torch.randn(clips.latents.shape, generator=generator, device=generator.device)
    return from_noise(flow, clips, given, null, noise, steps=steps, scale=scale)


def from_noise(
    flow: Flow,
    clips: LatentClips,
    given: Conditions,
    null: Conditions | None,
    noise: Tensor,
    *,
    steps: int,
    scale: float,
) -> Tensor:
    """The clips that the flow carries `noise` [B, K, C, F, h, w] to."""
    context, x = clips.latents.float(), noise
    for level, after in pairwise(euler_levels(steps, flow.config.schedule.shift)):
        here = torch.full((len(x),), level, device=x.device)
        clean = flow.believed(x, here, given, context=context)
        if null is not None:
            clean = losses.guided(clean, flow.believed(x, here, null, context=context), scale)
        # Along the straight line from the noise in x to the clean clip.
        x = clean + (x - clean) * (after / level)
    return x
