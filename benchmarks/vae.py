"""How fast frames are made: python -m benchmarks.vae --device cpu|cuda [--case NAME ...]

For every case: milliseconds per chunk of 3 latents (12 frames), the share of the arithmetic floor,
time by stage, memory of a session, the price of a rebuild, several sessions at once, and, where
diffusers is installed and can express the model, the decoder of its `AutoencoderKLWan` with the
same weights in the same run. Weights are random. Prints a table and records
benchmarks/results/vae-<device>.json. Needs torch, safetensors, einops and numpy alone.

The floor is what the original network multiplies (nearest-neighbour doubling followed by 3 x 3
convolutions, as published), at the rate at which the same device multiplies large matrices in the
same format. It may be beaten: doubling is folded into smaller convolutions here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.record import Figure, record
from services.accelerator.replay import capture_for
from services.vae.config import TowerConfig, VaeConfig, tiny, wan21
from services.vae.decoder import Head
from services.vae.diffusers_layout import name_pairs
from services.vae.layers import Attention, Upsample
from services.vae.model import Vae
from services.vae.pixels import Pixels, to_pixels
from services.vae.runner import Runner, place
from services.vae.state import State

LATENTS = 3


@dataclass(frozen=True)
class Case:
    config: VaeConfig
    side: int  # pixels, width and height
    threads: int = 0  # 0: as PyTorch likes


def small(widths: tuple[int, ...], taps: tuple[int, ...] = (3, 3, 3), inner: int = 3) -> VaeConfig:
    """A candidate for a small model: `tiny` with other decoder widths and temporal taps."""
    decoder = replace(tiny().decoder, widths=widths, taps=taps, middle_taps=inner)
    return replace(tiny(), decoder=decoder)


def wan_small() -> VaeConfig:
    """The smallest of the Wan layout that diffusers can express as well."""
    tower = TowerConfig(
        widths=(32, 64, 96), blocks=1, taps=(3,) * 3, temporal=(True, True), middle_taps=3,
        attention=True,
    )  # fmt: skip
    decoder = replace(tower, widths=(96, 64, 32), blocks=2)
    return replace(wan21(), encoder=tower, decoder=decoder, patch=2)


CPU_CASES = {
    f"{name}-{side}px-{threads}t": Case(config, side, threads)
    for name, config in {
        "tiny": tiny(),  # 128/96/64 with a flat last stage: its convolutions see one frame
        "128/96/64": small((128, 96, 64)),
        "128/64/32": small((128, 64, 32)),
        "128/64/32-flat": small((128, 64, 32), (3, 3, 1)),
    }.items()
    for side in (192, 256)
    for threads in (1, 2)
} | {"wan-small-128px-1t": Case(wan_small(), 128, 1)}
CUDA_CASES = {
    "wan21-512px": Case(wan21(), 512),
    "tiny-256px": Case(tiny(), 256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--case", action="append", help="run these alone (default: all)")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--name", help="of the results (default: vae-<device>)")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    cases = CUDA_CASES if device.type == "cuda" else CPU_CASES
    chosen = arguments.case or list(cases)
    results: dict[str, Any] = {"cases": {}}
    for name in chosen:
        case = cases[name]
        if case.threads:
            torch.set_num_threads(case.threads)
        result = measure(case, device, arguments.runs)
        results["cases"][name] = result
        print(_line(name, result), flush=True)
    name = arguments.name or f"vae-{device.type}"
    print("recorded in", record(name, figures(results["cases"]), results, device=device))


def figures(cases: dict[str, Any]) -> dict[str, Figure]:
    """What is followed from run to run."""
    return {
        f"{what}, {name}": figure
        for name, case in cases.items()
        for what, figure in {
            "chunk": Figure(min(case["chunk_ms"].values()), "ms"),
            "share of the arithmetic floor": Figure(
                round(100 * case["share_of_floor"], 1), "%", "more"
            ),
            "rebuild": Figure(case["rebuild_ms"], "ms"),
            "memory of a session": Figure(case["session_mib"], "MiB"),
            **{
                f"a session's chunk, {batch} in a pass": Figure(ms, "ms")
                for batch, ms in case["sessions_at_once_ms"].items()
            },
        }.items()
    }


def measure(case: Case, device: torch.device, runs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    vae = Vae(case.config).eval().requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    runner = place(vae, device)
    rows, columns = case.config.latent_size(case.side, case.side)
    work = chunk_flops(vae, rows, columns)
    floor = work / matmul_rate(device, runner.dtype)
    with runner.active():
        seconds = {name: chunk_seconds(r, rows, columns, runs) for name, r in modes(runner).items()}
        best = min(seconds.values())
        result = {
            "dtype": str(runner.dtype).removeprefix("torch."),
            "chunk_ms": {name: _ms(value) for name, value in seconds.items()},
            "gflop_per_latent": round(work / LATENTS / 1e9, 1),
            "floor_ms": _ms(floor),
            "share_of_floor": round(floor / best, 3),
            "stages_ms": stages(runner, rows, columns, runs),
            "session_mib": round(runner.session_bytes(rows, columns) / 2**20, 1),
            "reach_latents": vae.reach,
            "rebuild_ms": _ms(rebuild_seconds(runner, rows, columns)),
            "sessions_at_once_ms": at_once(runner, rows, columns),
        }
        if device.type == "cuda":
            result["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
        peer = diffusers_seconds(case.config, weights, runner, (rows, columns), runs)
    result["diffusers_chunk_ms"] = None if peer is None else _ms(peer)
    return result


def modes(runner: Runner) -> dict[str, Runner]:
    """The ways to run one chunk on this device, slowest first."""
    vae, device = runner.vae, runner.device
    ways = {"eager": Runner(vae, device, capture=None, compiled=False)}
    if device.type == "cuda":
        capture = capture_for(device)
        ways["recorded"] = Runner(vae, device, capture=capture, compiled=False)
        ways["compiled"] = Runner(vae, device, capture=None, compiled=True)
        ways["compiled and recorded"] = Runner(vae, device, capture=capture, compiled=True)
    return ways


def chunk_seconds(runner: Runner, rows: int, columns: int, runs: int, batch: int = 1) -> float:
    """Time from latents in memory to 8-bit frames on the device, state kept."""
    states = [begun(runner, rows, columns) for _ in range(batch)]
    latents = noise(runner, batch, LATENTS, rows, columns)

    def chunk() -> None:
        frames, fresh = runner.decode(latents, states)
        for picture in frames:
            to_pixels(picture, Pixels.I420)
        for state, moved in zip(states, fresh, strict=True):
            state.copy_(moved)

    return best_seconds(chunk, runner.device, runs)


def at_once(runner: Runner, rows: int, columns: int) -> dict[str, float]:
    """Milliseconds per session's chunk when several sessions share a pass."""
    plain = Runner(runner.vae, runner.device, capture=None, compiled=False)
    return {
        str(batch): _ms(chunk_seconds(plain, rows, columns, 3, batch) / batch)
        for batch in (1, 2, 4)
    }


def rebuild_seconds(runner: Runner, rows: int, columns: int) -> float:
    """Time to make a state from the anchor and an exact tail."""
    anchor = noise(runner, 1, 1, rows, columns)
    tail = noise(runner, 1, runner.vae.reach, rows, columns)
    return best_seconds(lambda: runner.begin(anchor, tail), runner.device, 2)


def stages(runner: Runner, rows: int, columns: int, runs: int) -> dict[str, float]:
    """Eager milliseconds by stage: the sum is the eager chunk without what happens around it."""
    layers = _stage_of_layers(runner.vae)
    clock = clock_for(runner.device)
    marks: list[tuple[str, float]] = []

    def mark(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
            marks.append((name, clock()))

        return hook

    handles = [layer.register_forward_hook(mark(name)) for layer, name in layers]
    handles.append(runner.vae.conv2.register_forward_hook(mark("start")))
    eager = Runner(runner.vae, runner.device, capture=None, compiled=False)
    state = begun(eager, rows, columns)
    latents = noise(eager, 1, LATENTS, rows, columns)
    rounds: list[dict[str, float]] = []
    for _ in range(runs):
        marks.clear()
        eager.decode(latents, [state])
        rounds.append(_spans(marks))
    for handle in handles:
        handle.remove()
    return {name: _ms(min(r[name] for r in rounds)) for name in rounds[0]}


def _stage_of_layers(vae: Vae) -> list[tuple[nn.Module, str]]:
    scale = 1
    named: list[tuple[nn.Module, str]] = []
    for layer in cast(list[nn.Module], vae.decoder.layers):
        name = "head" if isinstance(layer, Head) else f"{scale}x"
        if isinstance(layer, Upsample):
            scale *= 2
            name = f"to {scale}x"
        named.append((layer, name))
    return named


def _spans(marks: list[tuple[str, float]]) -> dict[str, float]:
    spans: dict[str, float] = {}
    for (_, before), (name, after) in pairwise(marks):
        spans[name] = spans.get(name, 0.0) + after - before
    return spans


def chunk_flops(vae: Vae, rows: int, columns: int) -> float:
    """Operations (2 per multiplication) of one chunk in the network as published."""
    frames, positions, total = LATENTS, rows * columns, 0.0
    total += frames * positions * vae.conv2.weight.numel()
    for layer in vae.decoder.layers:
        assert isinstance(layer, nn.Module)
        if isinstance(layer, Upsample):
            if layer.time_conv is not None:
                total += frames * positions * layer.time_conv.weight.numel()
            frames, positions = frames * layer.rate, positions * 4
            total += frames * positions * layer.resample["1"].weight.numel()
            continue
        if isinstance(layer, Attention):
            channels = layer.proj.weight.shape[0]
            total += frames * positions * 2 * positions * channels
        convolutions = [m for m in layer.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
        total += frames * positions * sum(conv.weight.numel() for conv in convolutions)
    return 2 * total


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of one large matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: a @ b, device, 7)


def diffusers_seconds(
    config: VaeConfig,
    weights: dict[str, Tensor],
    runner: Runner,
    size: tuple[int, int],
    runs: int,
) -> float | None:
    """The same chunk through diffusers' decoder, latent by latent as it streams, state kept."""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError:
        return None
    if config.norm_groups or {*config.decoder.taps, config.decoder.middle_taps} != {3}:
        return None
    base = config.encoder.widths[0]
    model = AutoencoderKLWan(
        base_dim=base,
        z_dim=config.latent_channels,
        dim_mult=[width // base for width in config.encoder.widths],
        num_res_blocks=config.encoder.blocks,
        temperal_downsample=list(config.encoder.temporal),
        in_channels=3 * config.patch**2,
        out_channels=3 * config.patch**2,
    )
    ours = dict(name_pairs(config))
    model.load_state_dict({theirs: weights[name] for theirs, name in ours.items()})
    model = model.eval().to(runner.device, runner.dtype)
    latents = noise(runner, 1, LATENTS, *size)
    model.clear_cache()
    cache = model._feat_map

    def chunk() -> None:
        z = model.post_quant_conv(latents)
        for frame in range(LATENTS):
            model.decoder(z[:, :, frame : frame + 1], feat_cache=cache, feat_idx=[0])

    model.decoder(latents[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True)
    return best_seconds(chunk, runner.device, runs)


def begun(runner: Runner, rows: int, columns: int) -> State:
    anchor = noise(runner, 1, 1, rows, columns)
    return runner.begin(anchor, noise(runner, 1, LATENTS, rows, columns))


def noise(runner: Runner, batch: int, latents: int, rows: int, columns: int) -> Tensor:
    return runner.take(torch.randn(batch, runner.config.latent_channels, latents, rows, columns))


def best_seconds(work: Callable[[], object], device: torch.device, runs: int) -> float:
    """Least time of `work`, device included, after two calls to warm up.

    The least, because other work on a machine only ever adds. On one CPU thread it is processor
    time, which other programs disturb little; otherwise wall time.
    """
    clock = clock_for(device)
    times = []
    for run in range(runs + 2):
        _wait(device)
        start = clock()
        work()
        _wait(device)
        if run >= 2:
            times.append(clock() - start)
    return min(times)


def clock_for(device: torch.device) -> Callable[[], float]:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def _line(name: str, result: dict[str, Any]) -> str:
    ways = ", ".join(f"{way} {ms:.0f}" for way, ms in result["chunk_ms"].items())
    peer = result["diffusers_chunk_ms"]
    return (
        f"{name:24} {result['dtype']:9} chunk ms: {ways}; floor {result['floor_ms']:.0f} "
        f"({result['share_of_floor']:.0%}); session {result['session_mib']:.1f} MiB; "
        f"rebuild {result['reach_latents']} latents {result['rebuild_ms']:.0f} ms; "
        f"per session of 1/2/4 {list(result['sessions_at_once_ms'].values())}; "
        f"diffusers {'-' if peer is None else f'{peer:.0f}'}"
    )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description."""


if __name__ == "__main__":
    main()
