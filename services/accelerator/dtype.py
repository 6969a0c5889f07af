"""Choose the number format that a device computes fastest in, once, at start-up.

Stands beside the models: both model services ask here before they load weights. Processors differ
too much for a rule: bfloat16 ran 2.4 times faster than float32 on one, three times slower on
another. Accelerators are not timed. Not yet run on a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Trial = Callable[[torch.dtype], Callable[[], object]]

_WARM_UPS = 2  # the first calls pay for packing weights and for cold caches
_RUNS = 5
# Precision is not given away for noise: a later candidate has to win clearly.
_CLEARLY = 0.9


def fastest_dtype(
    device: torch.device,
    candidates: Sequence[torch.dtype],
    trial: Trial,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> torch.dtype:
    """The candidate that `device` runs fastest.

    Args:
        device: where the model will run.
        candidates: most precise first. A later one is chosen only if its median time is below
            0.9 times the best so far, so ties and noise keep the earlier.
        trial: prepares a representative piece of work in a dtype (weights cast, inputs made) and
            returns it as a function of no arguments; only calls of that function are timed. It is
            not used on accelerators, which get bfloat16 when it is a candidate.
        clock: seconds, monotonic.

    Ranks that work together must not each choose: the first chooses and tells the others.

    Raises:
        ValueError: no candidates.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one dtype, got none")
    if device.type != "cpu":
        return torch.bfloat16 if torch.bfloat16 in candidates else candidates[0]
    best = candidates[0]
    if len(candidates) == 1:
        return best
    best_seconds = _median_seconds(trial(best), clock)
    for dtype in candidates[1:]:
        seconds = _median_seconds(trial(dtype), clock)
        if seconds < _CLEARLY * best_seconds:
            best, best_seconds = dtype, seconds
    return best


def _median_seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    with torch.inference_mode():
        for _ in range(_WARM_UPS):
            work()
        return statistics.median(_seconds(work, clock) for _ in range(_RUNS))


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start
