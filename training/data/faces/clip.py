"""Make clips of talking heads: the one thing that training asks of this package.

controls → **behaviour** → expression per frame → renderer of the family → pictures and truth. A
clip is a function of its `Scene` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from talkingmachines.errors import BadInput
from training.data.faces.behaviour import Motion, perform
from training.data.faces.draw import uniform
from training.data.faces.expression import MOUTH, Expression
from training.data.faces.family import Family, Traits, renderer
from training.data.faces.truth import Truth

_ELSEWHERE = 1000.0  # seconds between a clip and the moment of its reference picture, at least


@dataclass(frozen=True, slots=True)
class Scene:
    """Who does what: B clips of T frames of one family."""

    family: Family
    identity: Tensor  # int64 [B], from `split.identity_seed`
    motion: Motion
    mouth: Tensor  # float32 [B, T, 6] in the order of `expression.MOUTH`, 0..1
    speaking: Tensor  # float32 [B, T], 1 talking, 0 listening

    def __post_init__(self) -> None:
        clips, frames = self.speaking.shape
        if self.mouth.shape != (clips, frames, len(MOUTH)):
            raise BadInput(
                "mouth",
                got=list(self.mouth.shape),
                expected=f"[{clips}, {frames}, {len(MOUTH)}] as speaking says",
            )
        if self.identity.shape != (clips,) or self.motion.seed.shape != (clips,):
            raise BadInput(
                "identity and motion",
                got=f"{list(self.identity.shape)} and {list(self.motion.seed.shape)}",
                expected=f"[{clips}], one per clip",
            )


@dataclass(frozen=True, slots=True)
class Clip:
    frames: Tensor  # uint8 [B, T, 3, size, size]
    truth: Truth


def render(
    scene: Scene, size: int, device: torch.device | None = None, *, compiled: bool = False
) -> Clip:
    """Draw every frame of a scene on `device` (the CPU unless said).

    Args:
        compiled: minutes of compiling once per process, for several times the speed after it.
    """
    expression = perform(scene.motion, scene.mouth, scene.speaking)
    return _draw(scene, expression, size, device, compiled=compiled)


def reference(
    scene: Scene, size: int, device: torch.device | None = None, *, compiled: bool = False
) -> Tensor:
    """One picture [B, 3, size, size] (uint8) of each identity from another moment.

    Another pose, gaze and light smile; the mouth is at rest in two of three, else a little open,
    so that a model can neither copy the clip's mouth nor trust that the reference is closed.
    """
    seed = scene.motion.seed
    start = scene.motion.start + _ELSEWHERE * (1 + uniform(seed, "reference moment"))
    parted = (uniform(seed, "reference parted") < 0.33).float()
    mouth = torch.zeros(len(seed), 1, len(MOUTH))
    for k, most in enumerate((0.6, 0.5, 0.3, 0.0, 0.6, 0.0)):
        mouth[:, 0, k] = parted * most * uniform(seed, "reference mouth", k)
    moment = Scene(
        scene.family, scene.identity, replace(scene.motion, start=start), mouth, parted[:, None]
    )
    expression = perform(moment.motion, moment.mouth, moment.speaking)
    awake = replace(expression, blink=torch.zeros_like(expression.blink))
    return _draw(moment, awake, size, device, compiled=compiled).frames[:, 0]


def _draw(
    scene: Scene,
    expression: Expression,
    size: int,
    device: torch.device | None,
    *,
    compiled: bool,
) -> Clip:
    device = device or torch.device("cpu")
    clips, frames = scene.speaking.shape
    drawer = renderer(scene.family)
    who = {name: value.to(device) for name, value in drawer.traits(scene.identity).items()}
    flat = expression.map(lambda field: field.reshape(-1).to(device))
    owner = torch.arange(clips, device=device).repeat_interleave(frames)
    pictures, count = [], clips * frames
    paint, at_once = _painter(scene.family, compiled), drawer.frames_at_once(device)
    with torch.no_grad():
        for first in range(0, count, at_once):
            part = torch.arange(first, first + at_once, device=device)
            # Compiled code is for one number of frames: the last of them is drawn again.
            part = part.clamp(max=count - 1) if compiled else part[: count - first]
            own = {name: value[owner[part]] for name, value in who.items()}
            now = flat.map(lambda field, part=part: field[part])  # type: ignore[misc]
            pictures.append(paint(own, now, size)[: count - first])
        lips, face = drawer.landmarks({name: value[owner] for name, value in who.items()}, flat)
    return Clip(
        torch.cat(pictures).reshape(clips, frames, 3, size, size),
        Truth.of(lips.by_clip(clips), face.reshape(clips, frames, 4)),
    )


@cache
def _painter(family: Family, compiled: bool) -> Callable[[Traits, Expression, int], Tensor]:
    """What makes pictures, uint8 [N, 3, size, size], of traits and expressions [N, ...]."""
    drawer = renderer(family)

    def paint(who: Traits, now: Expression, size: int) -> Tensor:
        return (drawer.draw(who, now, size) * 255 + 0.5).to(torch.uint8)

    # The other family draws triangles with few operations on much at once: little to compile.
    if compiled and family is Family.STYLISED:
        return torch.compile(paint, dynamic=False)
    return paint
