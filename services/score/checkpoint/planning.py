"""What a checkpoint takes on a machine, before there is one: memory, time, sessions, ranks.

Beside `inspection.py`; behind `talkingmachines models plan`. Arithmetic on a configuration alone.
Times are the floor of matrix products over a share of the device's speed: measured shares of public
systems of this kind are 40 to 65 %; ours has been measured only where docs/score.md says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.score.config import DitConfig
from services.score.floor import chunk_floor

SHARE = 0.5  # of a device's matrix products, where nobody says otherwise

_USABLE = 0.9  # as in `services.score.schedule`
_16_BIT = 2  # bytes
_WORKING = 4e9  # bytes: activations, workspaces, the runtime
# Wan2.1's VAE at 512 x 512: operations and bytes, which grow with the picture (docs/vae.md).
_VAE_LATENT, _VAE_STATE, _VAE_WEIGHTS = 8.88e12, 1.24e9, 0.25e9
_VAE_PIXELS = 512 * 512


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device: its speed was measured for the H200, and is 80 % of the data sheet for others."""

    name: str
    memory: float  # bytes
    speed: float  # operations a second of matrix products in bfloat16, dense


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 141e9, 790e12),
        Gpu("h100", 80e9, 790e12),
        Gpu("a100", 80e9, 250e12),
        Gpu("l40s", 48e9, 290e12),
        Gpu("b200", 180e9, 1800e12),
    )
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one replica on one device."""

    parts: dict[str, float]  # bytes
    session: float  # bytes of one more session, VAE included
    avatar: float  # bytes of one more avatar
    kept: int  # sessions that fit in memory
    floor: float  # seconds of a chunk, at the device's whole speed
    chunk: float  # seconds of a chunk, at the share
    vae: float  # seconds of its decoding, at the share
    live: int  # sessions that would all be in time, on this device alone
    ranks: tuple[int, ...]  # devices that could draw one picture together


def plan(config: DitConfig, parameters: int, gpu: Gpu, *, share: float = SHARE) -> Plan:
    """What a model of so many parameters in 16 bits, and its VAE, take on `gpu`."""
    token = 2 * config.layers * config.dim * _16_BIT
    described = (config.text.tokens if config.text else 0) + (
        config.clip.tokens if config.clip else 0
    )
    area = config.stream.width * config.stream.height / _VAE_PIXELS
    window = config.anchor_tokens + (1 + config.context.chunks) * config.chunk_tokens
    parts = {
        "weights": parameters * float(_16_BIT),
        "passes": float(token * config.windows * window) + token * described,
        "VAE": _VAE_WEIGHTS,
        "working memory": _WORKING,
    }
    session = token * config.windows * config.context.chunks * config.chunk_tokens
    session_and_vae = session + _VAE_STATE * area
    avatar = float(token * (config.anchor_tokens + described))
    free = gpu.memory - sum(parts.values())
    floor = chunk_floor(config) / gpu.speed
    vae = _VAE_LATENT * config.stream.latents_per_chunk * area / gpu.speed / share
    chunk = floor / share
    return Plan(
        parts=parts,
        session=session_and_vae,
        avatar=avatar,
        kept=max(0, int(free // (session_and_vae + avatar))),
        floor=floor,
        chunk=chunk,
        vae=vae,
        live=int(_USABLE * config.spec.chunk_seconds // (chunk + vae)),
        ranks=ranks(config),
    )


def ranks(config: DitConfig) -> tuple[int, ...]:
    """Numbers of devices that divide heads and rows of tokens."""

    def divides(count: int) -> bool:
        whole = config.heads % count == 0 and config.grid[0] % count == 0
        packed = config.anchor_tokens > config.frame_tokens and count > 1
        return whole and not (packed and config.latent_size[0] % (8 * count))

    return tuple(count for count in range(1, 17) if divides(count))


def lines(config: DitConfig, made: Plan, gpu: Gpu, *, share: float) -> Iterator[str]:
    """For a person."""
    stream, seconds = config.stream, config.spec.chunk_seconds
    yield (
        f"{gpu.name}, {gpu.memory / 1e9:.0f} GB; {stream.width}x{stream.height} at {stream.fps} "
        f"fps, chunks of {1000 * seconds:.0f} ms, {len(config.schedule.levels)} steps"
    )
    for name, size in made.parts.items():
        yield f"  {name:<15} {size / 1e9:7.2f} GB"
    left = gpu.memory - sum(made.parts.values())
    yield f"  {'left':<15} {left / 1e9:7.2f} GB" + ("" if left > 0 else ": it does not fit")
    yield f"  {'each avatar':<15} {made.avatar / 1e9:7.2f} GB of keys and values"
    yield f"  {'each session':<15} {made.session / 1e9:7.2f} GB with its VAE state"
    yield f"  memory for      {made.kept} sessions of different avatars"
    yield (
        f"  a chunk takes   {1000 * made.floor:.0f} ms at the floor, {1000 * made.chunk:.0f} ms at "
        f"{100 * share:.0f} % of it, and {1000 * made.vae:.0f} ms to decode"
    )
    needed = (made.chunk + made.vae) / seconds
    yield f"  a live session  {100 * needed:.0f} % of the time of one such device"
    late = "" if made.live else ": share the picture, or keep the VAE apart"
    yield f"  time for        {min(made.live, made.kept)} live sessions on one{late}"
    yield f"  ranks           {', '.join(map(str, made.ranks))} devices can share one picture"
