"""How wrong a rebuilt stream is, by length of its tail: python -m benchmarks.vae_rebuild

A decoder state is made anew from the anchor and the last K latents, and the stream goes on: the
error is the root mean square of the difference from the undisturbed stream over the root mean
square of that stream about its mean, for the first frame and for whole chunks after it. Weights
are random (trained ones forget faster). Latents are white noise, the worst case, or a slow drift,
which is nearer to a face. Records benchmarks/results/vae-rebuild.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import Figure, record
from services.vae.config import VaeConfig, tiny, wan21
from services.vae.model import Vae
from services.vae.runner import place

SIDE = 6  # latents
CHUNK = 3  # latents
AFTER = 4  # chunks that are compared
TAILS = (0, 2, 4, 8, 12, 16, 19, 20, 24, 28, 32, 36, 37, 38)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    results: dict[str, Any] = {"cases": {}}
    for name, config in {"wan21 at a quarter of its widths": narrow_wan(), "tiny": tiny()}.items():
        for kind in ("noise", "drift"):
            errors = measure(config, kind)
            results["cases"][f"{name}, {kind}"] = errors
            print(f"{name}, {kind} (reach {errors['reach']}):")
            for tail, row in errors["error"].items():
                print(f"  K {tail:>3}: " + "  ".join(f"{value:.1e}" for value in row))
    reaches = {
        f"latents for an exact rebuild, {name}": Figure(case["reach"], "latents")
        for name, case in results["cases"].items()
    }
    print("recorded in", record("vae-rebuild", reaches, results))


def narrow_wan() -> VaeConfig:
    full = wan21()
    quarter = lambda widths: tuple(width // 4 for width in widths)
    return replace(
        full,
        encoder=replace(full.encoder, widths=quarter(full.encoder.widths)),
        decoder=replace(full.decoder, widths=quarter(full.decoder.widths)),
    )


def measure(config: VaeConfig, kind: str) -> dict[str, Any]:
    torch.manual_seed(0)
    vae = Vae(config).eval().requires_grad_(False)
    runner = place(vae, torch.device("cpu"), dtype=torch.float32)
    past = 60
    z = latents(config.latent_channels, 1 + past + AFTER * CHUNK, kind)
    anchor, before, after = z[:, :, :1], z[:, :, 1 : 1 + past], z[:, :, 1 + past :]
    with runner.active():
        expected = go_on(runner.vae, runner.begin(anchor, before), after)
        error = {
            tail: row(go_on(runner.vae, runner.begin(anchor, before[:, :, past - tail :]), after),
                      expected)
            for tail in TAILS if tail <= vae.reach
        }  # fmt: skip
    return {"reach": vae.reach, "columns": ["first frame", "chunk 1", "2", "3", "4"],
            "error": error}  # fmt: skip


def go_on(vae: Vae, state: Any, z: Tensor) -> list[Tensor]:
    chunks = []
    for piece in torch.split(z, CHUNK, dim=2):
        frames, state = vae.decode(piece, state)
        chunks.append(frames)
    return chunks


def row(got: list[Tensor], expected: list[Tensor]) -> list[float]:
    first = relative(got[0][:, :, :1], expected[0][:, :, :1])
    return [first, *(relative(a, b) for a, b in zip(got, expected, strict=True))]


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).pow(2).mean().sqrt() / expected.std())


def latents(channels: int, count: int, kind: str) -> Tensor:
    noise = torch.randn(1, channels, count, SIDE, SIDE)
    if kind == "noise":
        return noise
    drift = noise.clone()
    for at in range(1, count):  # stays at the size of the noise, and half goes within 10 latents
        drift[:, :, at] = 0.95 * drift[:, :, at - 1] + 0.31 * noise[:, :, at]
    return drift


if __name__ == "__main__":
    main()
