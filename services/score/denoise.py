"""Few-step flow sampling: which noise levels, and from prediction to latents.

On the path of a chunk: noise → **denoise** (a pass per level) → clean latents. Wan's convention:
level s in [0, 1], `x_s = (1 - s) x0 + s e`, velocity `v = e - x0`, so `x0 = x_s - s v` (rectified
flow; Liu et al., arXiv 2209.03003). Latents are float32 here, whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from services.score.config import DitConfig, ScheduleConfig


def levels(schedule: ScheduleConfig) -> tuple[float, ...]:
    """The noise levels of the steps: the schedule's, shifted toward noise.

    `s' = k s / (1 + (k - 1) s)` (Esser et al., arXiv 2403.03206): two steps at shift 3 are 1, 0.75.
    """
    k = schedule.shift
    return tuple(k * s / (1 + (k - 1) * s) for s in schedule.levels)


def noised(clean: Tensor, noise: Tensor, level: float | Tensor) -> Tensor:
    """`clean` at `level`; a tensor of levels must broadcast."""
    return (1 - level) * clean + level * noise


def clean_from(
    config: DitConfig, prediction: Tensor, x: Tensor, level: float | Tensor, anchor: Tensor
) -> Tensor:
    """The clean latents that the model believes in.

    Args:
        prediction: the model's output for `x` [..., C, F, h, w] at `level`.
        anchor: [..., C, 1, h, w]; a model that predicts clean latents gives what to add to it.
    """
    if config.prediction == "clean":
        return anchor + prediction
    return x - level * prediction


def velocity_from(
    config: DitConfig, prediction: Tensor, x: Tensor, level: float | Tensor, anchor: Tensor
) -> Tensor:
    """The velocity `e - x0` that the model believes in; `level` above 0."""
    if config.prediction == "velocity":
        return prediction
    return (x - clean_from(config, prediction, x, level, anchor)) / level


def sample(
    config: DitConfig,
    predict: Callable[[Tensor, int], Tensor],
    noises: Sequence[Tensor],
    anchor: Tensor,
) -> Tensor:
    """Denoise one chunk: [B, C, F, h, w] float32.

    Args:
        predict: the model's output for latents at the level of a step, by the step's number.
        noises: one per step, [B, C, F, h, w].
        anchor: [B, C, 1, h, w].
    """
    schedule = levels(config.schedule)
    x = clean = noises[0]
    for step, level in enumerate(schedule):
        if step > 0 and config.schedule.between == "renoise":
            x = noised(clean, noises[step], level)
        elif step > 0:
            # The line from `clean` through `x` at the level before, followed down to this one.
            x = clean + (x - clean) * (level / schedule[step - 1])
        clean = clean_from(config, predict(x, step), x, level, anchor)
    return clean
