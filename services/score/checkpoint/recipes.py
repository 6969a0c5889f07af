"""How public students were distilled and are drawn with: their files do not say.

Beside `layouts.py`. Schedule, visibility and geometry as in their authors' code:

- Self-Forcing (github.com/guandeh17/Self-Forcing): four steps, seven chunks of 3 latents visible,
  the context pass saw all earlier ones.
- RealVideo (github.com/zai-org/RealVideo): two or four steps, chunks of 2 latents, the reference
  and the chunk before visible, a clean context pass.
- LiveAvatar (github.com/Alibaba-Quark/LiveAvatar): four Euler steps, each of which sees keys and
  values that the last chunks left at its own noise level; the picture stands still before them.
- Wan2.2-S2V itself was not distilled and is not causal; it serves as the base of others.

Positions are chosen inside the range of distances that each was trained with, and stay there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

from services.runtime.strict_json import Misfit
from services.runtime.weights import BadCheckpoint
from services.score.config import (
    AudioConfig,
    ContextConfig,
    DitConfig,
    PositionsConfig,
    ReferenceConfig,
    S2vAudio,
    ScheduleConfig,
    StreamConfig,
)

Recipe = Literal["self-forcing", "realvideo", "realvideo-4", "liveavatar", "wan2.2-s2v"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)

# What `FlowMatchEulerDiscreteScheduler` of diffusers makes of four steps at shift 3, before it
# shifts them once more: evenly from its largest to its smallest level, 3/1002.
_EULER_4 = (1.0, 1 - 333 / 1002, 1 - 666 / 1002, 3 / 1002)


def prepared(source: str, config: DitConfig, recipe: Recipe) -> DitConfig:
    """`config` with what `recipe` says of it.

    Raises:
        BadCheckpoint: the recipe is for models of another kind.
    """
    made = {
        "self-forcing": _self_forcing,
        "realvideo": _realvideo,
        "realvideo-4": _realvideo_4,
        "liveavatar": _live_avatar,
        "wan2.2-s2v": _s2v,
    }
    chosen: Callable[[DitConfig], DitConfig] = made[recipe]
    speaks = config.audio is not None and isinstance(config.audio.adapter, S2vAudio)
    if speaks == (recipe == "self-forcing"):
        kind = "Wan2.2-S2V" if speaks else "Wan2.1"
        raise BadCheckpoint(source, why=f"recipe {recipe} is for another kind than this {kind}")
    return chosen(config)


def sized(source: str, config: DitConfig, width: int, height: int) -> DitConfig:
    """`config` for pictures of another size.

    Raises:
        BadCheckpoint: no such picture can be drawn.
    """
    try:
        return replace(config, stream=replace(config.stream, width=width, height=height))
    except Misfit as error:
        raise BadCheckpoint(source, why=str(error)) from error


def _self_forcing(config: DitConfig) -> DitConfig:
    return replace(
        config,
        stream=StreamConfig(fps=16, width=832, height=480),
        context=ContextConfig(policy="window", chunks=6, replay=6),
        positions=PositionsConfig(anchor=0, context=0, own=18),
        schedule=ScheduleConfig(levels=(1.0, 0.75, 0.5, 0.25), shift=5.0),
    )


def _realvideo(config: DitConfig) -> DitConfig:
    return replace(
        config,
        reference=ReferenceConfig(motion="none", pose=False),
        stream=StreamConfig(fps=16, latents_per_chunk=2, width=480, height=640),
        context=ContextConfig(policy="window", chunks=1, replay=4),
        positions=PositionsConfig(anchor=30, context=8, own=10),
        schedule=ScheduleConfig(levels=(1.0, 0.5), shift=3.0),
    )


def _realvideo_4(config: DitConfig) -> DitConfig:
    levels = (1.0, 0.75, 0.5, 0.25)
    return replace(_realvideo(config), schedule=ScheduleConfig(levels=levels, shift=3.0))


def _live_avatar(config: DitConfig) -> DitConfig:
    return replace(
        config,
        reference=ReferenceConfig(motion="still"),
        audio=_adapted(config, past="repeated"),
        stream=StreamConfig(fps=16, latents_per_chunk=3, width=704, height=384),
        context=ContextConfig(policy="levels", chunks=3, replay=4),
        positions=PositionsConfig(anchor=30, context=0, own=9),
        schedule=ScheduleConfig(levels=_EULER_4, shift=3.0, between="euler"),
    )


def _s2v(config: DitConfig) -> DitConfig:
    return replace(
        config,
        stream=StreamConfig(fps=16, latents_per_chunk=3, width=832, height=480),
        context=ContextConfig(policy="window", chunks=6, replay=6),
        positions=PositionsConfig(anchor=30, context=0, own=18),
        schedule=ScheduleConfig(
            levels=tuple(1 - n / 20 for n in range(20)), shift=3.0, between="euler"
        ),
    )


def _adapted(config: DitConfig, *, past: Literal["heard", "repeated"]) -> AudioConfig:
    audio = config.audio
    assert audio is not None
    assert isinstance(audio.adapter, S2vAudio)
    return replace(audio, adapter=replace(audio.adapter, past=past))
