"""What Figure 3's four arrangements would take on GPUs: arithmetic over stated inputs, nothing run.

Beside `figure3.py`. A chunk's operations (`services.score.floor`, `benchmarks.vae`) over what a GPU
multiplies and the share of that which is reached; exchanges between ranks; the way between engines.
Every input has its source, and says whether it was measured by this project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.vae import chunk_flops
from services.score.config import DitConfig
from services.score.floor import pass_floor
from services.score.presets import preset
from services.vae.config import wan21
from services.vae.model import Vae

ROOM = 0.9  # of a device's time may be planned with


@dataclass(frozen=True, slots=True)
class Input:
    """A number of the model: middle, and between what it may lie."""

    middle: float
    low: float  # the slow end
    high: float
    unit: str
    source: str
    measured: bool = False  # here, by this project


INPUTS = {
    "GPU": Input(790e12, 790e12, 790e12, "FLOP/s", "large bf16 products on one H200", True),
    "DiT's share": Input(
        0.5,
        0.4,
        0.63,
        "of it",
        "what peers' published chunk times amount to (RealVideo, vllm-omni)",
    ),
    "VAE's share": Input(
        0.45, 0.16, 0.6, "of it", "LiveAvatar's published time is the low end; the rest assumed"
    ),
    "exchange": Input(450e9, 450e9, 450e9, "B/s per rank", "NVLink's data sheet, one direction"),
    "launch": Input(20e-6, 40e-6, 10e-6, "s per exchange", "assumed, of 160 in a pass"),
    "way": Input(
        0.02, 0.035, 0.01, "s per chunk", "gRPC and Ray Serve's ingress, 393 KB, two cores", True
    ),
}


@dataclass(frozen=True, slots=True)
class Assumed:
    """One reading of the inputs."""

    rate: float
    dit_share: float
    vae_share: float
    exchange: float
    launch: float
    way: float


def assumed(end: str) -> Assumed:
    """All inputs at their `middle`, `low` (slow) or `high` (fast) end."""
    return Assumed(*(getattr(given, end) for given in INPUTS.values()))


@dataclass(frozen=True, slots=True)
class Estimate:
    """One arrangement on some GPUs. Seconds."""

    gpus: int
    used: int
    latency: float  # from the chunk's speech being there to its pictures
    period: float  # between chunks of one group
    groups: int  # that draw at the same time
    chunk_seconds: float

    @property
    def sessions(self) -> int:
        """In real time."""
        return self.groups * int(ROOM * self.chunk_seconds / self.period)


@dataclass(frozen=True, slots=True)
class Load:
    """A stream of one size."""

    config: DitConfig
    vae_flops: float

    @classmethod
    def of(cls, side: int) -> Load:
        config = preset("tm-18b")
        config = replace(config, stream=replace(config.stream, width=side, height=side))
        with torch.device("meta"):  # its shape is enough
            vae = Vae(wan21())
        return cls(config, chunk_flops(vae, side // 8, side // 8))

    def drawing(self, given: Assumed, ranks: int) -> tuple[float, float]:
        """Seconds of the denoising steps and of the context pass."""
        config = self.config
        steps = len(config.schedule.levels)
        denoise = steps * self._pass(given, ranks, chunks=config.context.chunks)
        return denoise, self._pass(given, ranks, chunks=0)

    def _pass(self, given: Assumed, ranks: int, *, chunks: int) -> float:
        # Ranks share the rows of tokens; what is odd is filled up (ours would refuse it).
        rows = self.config.grid[0]
        share = -(-rows // ranks) / rows
        flops = pass_floor(self.config, chunks=chunks).total
        return share * flops / (given.rate * given.dit_share) + self._exchanged(given, ranks)

    def _exchanged(self, given: Assumed, ranks: int) -> float:
        """Seconds of a pass in which queries, keys, values and results change ranks."""
        if ranks == 1:
            return 0.0
        config, times = self.config, 4 * self.config.layers
        sent = 2 * config.chunk_tokens / ranks * config.dim * (ranks - 1) / ranks
        return times * (sent / given.exchange + given.launch)

    def decoding(self, given: Assumed) -> float:
        return self.vae_flops / (given.rate * given.vae_share)


def self_contained(load: Load, given: Assumed, gpus: int, *, parallel: bool) -> Estimate:
    """DiT and VAE on one device, one after the other; in parallel all draw, and one decodes."""
    ranks = gpus if parallel else 1
    denoise, context = load.drawing(given, ranks)
    decode = load.decoding(given)
    period = denoise + decode + context
    seconds = load.config.spec.chunk_seconds
    return Estimate(gpus, gpus, denoise + decode, period, gpus // ranks, seconds)


def disaggregated(load: Load, given: Assumed, gpus: int, *, parallel: bool) -> Estimate | None:
    """One GPU decodes for all others, which draw; in parallel, in groups of a power of two."""
    others = gpus - 1
    if others < 1:
        return None
    ranks = max(n for n in (1, 2, 4) if n <= others) if parallel else 1
    groups = others // ranks
    denoise, context = load.drawing(given, ranks)
    decode = load.decoding(given)
    period = max(denoise + context, groups * decode)
    latency = denoise + given.way + decode
    seconds = load.config.spec.chunk_seconds
    return Estimate(gpus, groups * ranks + 1, latency, period, groups, seconds)


ARRANGEMENTS = {
    "self-contained": (self_contained, False),
    "self-contained, sequence parallel": (self_contained, True),
    "disaggregated": (disaggregated, False),
    "disaggregated, sequence parallel": (disaggregated, True),
}


def estimates(side: int, end: str = "middle") -> Iterator[tuple[str, int, Estimate | None]]:
    """Every arrangement on 1, 2, 4 and 8 GPUs."""
    load, given = Load.of(side), assumed(end)
    for name, (arrange, parallel) in ARRANGEMENTS.items():
        for gpus in (1, 2, 4, 8):
            yield name, gpus, arrange(load, given, gpus, parallel=parallel)
