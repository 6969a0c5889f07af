"""What a run shows of a transformer: sheets of held-out clips, and the folder that serving reads.

Beside the tasks of the teacher and the students, which all show the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from services.score.checkpoint.loading import save, save_front_end
from services.score.config import ScheduleConfig
from services.score.model import Dit
from services.vae.state import State
from training.flow import Conditions, Flow, conditions
from training.latents import LatentClips
from training.rollout import streamed
from training.sampling import whole_clip
from training.sheet import grid
from training.supply import Supply
from training.vae import autocast

_SHOWN = 3  # clips on a sheet


@torch.no_grad()
def looked_at(
    flow: Flow, supply: Supply, device: torch.device
) -> tuple[Tensor, Mapping[str, float]]:
    """Frames of held-out clips, rendered and drawn, and how far the drawn latents are off."""
    clips = supply.held_out
    rows, numbers = [clips.latents.float()], dict[str, float]()
    for steps in (2, 8):
        generator = torch.Generator(device).manual_seed(5)
        with autocast(device):
            given = conditions(flow.dit, clips)
            drawn = sampled(flow, clips, given, steps, generator)
        numbers[f"error_{steps}"] = float((drawn - rows[0]).square().mean())
        rows.append(drawn)
    still = clips.anchor.float()[:, None].expand_as(rows[0])
    numbers["error_still"] = float((still - rows[0]).square().mean())
    lines = [
        frames_of(supply, latents[clip], clips.anchor[clip], device)[6::6]
        for clip in range(min(_SHOWN, len(clips.latents)))
        for latents in rows
    ]
    return grid(lines), numbers


def sampled(
    flow: Flow, clips: LatentClips, given: Conditions, steps: int, generator: torch.Generator
) -> Tensor:
    """Clips as the model draws them: streams of a student, whole clips of a teacher."""
    if flow.sight == "whole":
        return whole_clip(flow, clips, given, None, steps=steps, scale=1.0, generator=generator)
    even = tuple(1 - i / steps for i in range(steps))
    schedule = ScheduleConfig(even, flow.config.schedule.shift)
    return streamed(flow, given, clips.latents.shape[1], generator, schedule=schedule)


def frames_of(supply: Supply, latents: Tensor, anchor: Tensor, device: torch.device) -> Tensor:
    """Frames [T, 3, H, W] of one clip's latents [K, C, F, h, w] after its anchor [C, 1, h, w]."""
    stream = torch.cat([anchor.float(), *latents.float()], 1)[None]
    with autocast(device):
        frames, _ = supply.vae.decode(stream, State())
    return frames[0, :, 1:].transpose(0, 1).float()


def exported(dit: Dit, supply: Supply, directory: Path) -> None:
    """Write a model as `services.score` reads it, its front end beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu() for name, value in dit.state_dict().items()}
    half = {name: value.bfloat16() if value.dim() > 1 else value for name, value in state.items()}
    save(directory, dit.config, half.items())
    save_front_end(directory, supply.front_end)
