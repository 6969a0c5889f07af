"""Make clips of talking heads: the one thing that training asks of this package.

controls → **behaviour** → expression per frame → renderer of the family → pictures and truth. A
clip is a function of its `Scene` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from talkingmachines.errors import BadInput
from training.data.faces.behaviour import Motion, perform
from training.data.faces.draw import uniform
from training.data.faces.expression import MOUTH, Expression
from training.data.faces.family import Family, renderer
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


def render(scene: Scene, size: int, device: torch.device | None = None) -> Clip:
    """Draw every frame of a scene on `device` (the CPU unless said)."""
    return _draw(scene, perform(scene.motion, scene.mouth, scene.speaking), size, device)


def reference(scene: Scene, size: int, device: torch.device | None = None) -> Tensor:
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
    return _draw(moment, awake, size, device).frames[:, 0]


def _draw(scene: Scene, expression: Expression, size: int, device: torch.device | None) -> Clip:
    device = device or torch.device("cpu")
    clips, frames = scene.speaking.shape
    drawer = renderer(scene.family)
    who = {name: value.to(device) for name, value in drawer.traits(scene.identity).items()}
    flat = expression.map(lambda field: field.reshape(-1).to(device))
    owner = torch.arange(clips, device=device).repeat_interleave(frames)
    pictures = []
    with torch.no_grad():
        for first in range(0, clips * frames, drawer.frames_at_once(device)):
            part = slice(first, first + drawer.frames_at_once(device))
            own = {name: value[owner[part]] for name, value in who.items()}
            now = flat.map(lambda field, part=part: field[part])  # type: ignore[misc]
            pictures.append((drawer.draw(own, now, size) * 255 + 0.5).to(torch.uint8))
        lips, face = drawer.landmarks({name: value[owner] for name, value in who.items()}, flat)
    return Clip(
        torch.cat(pictures).reshape(clips, frames, 3, size, size),
        Truth.of(lips.by_clip(clips), face.reshape(clips, frames, 4)),
    )
