"""How many sessions a GPU carries, computed and not run: python -m benchmarks.capacity

Arithmetic of a chunk (`services.score.floor`, `benchmarks.vae`) over what a GPU multiplies, times
the share of that which today's best systems reach; the table of docs/operate.md.
"""

from __future__ import annotations

import torch

from benchmarks.vae import chunk_flops
from services.score.checkpoint.recipes import sized
from services.score.floor import chunk_floor
from services.score.presets import preset
from services.vae.config import wan21
from services.vae.model import Vae

# Matrix products in bfloat16 on an H200, as measured; others scale by their own figure.
FLOPS = 790e12
REACHED = (0.4, 0.6)  # of it, by the best systems that publish figures
SIDE = 512  # pixels
LOAD = 0.9  # of a device's time; the rest is for attaching


def sessions(seconds: float, period: float) -> int:
    """Sessions of a device that needs `seconds` for a chunk of each."""
    return int(LOAD * period / seconds)


def row(what: str, flops: float, period: float) -> str:
    floor = flops / FLOPS
    slow, fast = (floor / share for share in REACHED)
    fit = f"{sessions(slow, period)} to {sessions(fast, period)}"
    times = f"{1000 * fast:.0f} to {1000 * slow:.0f} ms"
    ranks = next(n for n in (1, 2, 4, 8) if sessions(slow / n, period) >= 1)
    return f"| {what} | {flops / 1e12:.1f} | {1000 * floor:.0f} ms | {times} | {fit} | {ranks} |"


def main() -> None:
    print(
        "| model, 512 x 512 | TFLOP a chunk | floor | a chunk | sessions on a GPU | GPUs for one |"
    )
    print("|---|---|---|---|---|---|")
    for name in ("tm-18b", "tm-1.3b", "realvideo", "liveavatar"):
        config = sized(name, preset(name), SIDE, SIDE)
        period = config.spec.chunk_seconds
        print(row(f"score, {name}", chunk_floor(config), period))
    with torch.device("meta"):  # its shape is enough
        vae = Vae(wan21())
    print(row("VAE, Wan2.1's", chunk_flops(vae, SIDE // 8, SIDE // 8), period))


if __name__ == "__main__":
    main()
