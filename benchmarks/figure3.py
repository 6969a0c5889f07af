"""The paper's Figure 3, done again: python -m benchmarks.figure3 [--chunks 20] [--model]

A self-contained server (DiT and VAE on one device, one after the other) against Score-VAE
disaggregation, each with and without sequence parallelism: first on this machine's cores with the
real engines and the shipped model, then computed for tm-18b on 1, 2, 4 and 8 GPUs at 512 x 512 and
720 x 720. Nothing of the second part ran on a GPU; `benchmarks.fleet_model` says what it assumes.

    --model   compute the second part alone, and leave what was measured as it was
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.arrangements import WAYS, measured
from benchmarks.fleet_model import ARRANGEMENTS, INPUTS, estimates
from benchmarks.plot import Panel, Value, grouped
from benchmarks.record import Figure, read, record

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "figure3.png"
SIDES = (512, 720)
NAME = "figure3"
CAPTION = (
    "COMPUTED, NOT RUN ON A GPU: tm-18b, two steps and a context pass, 12 frames at 16 fps; the "
    "arithmetic of a chunk over 790 TFLOP/s (large products, measured on one H200) times the share "
    "of it that is reached: DiT 50 % (40 to 63: from what peers publish), VAE 45 % (16 to 60: "
    "assumed); NVLink at 450 GB/s (data sheet), 20 us an exchange (assumed), 20 ms between engines "
    "(measured on CPUs). Thin lines: both ends of the inputs. Disaggregated needs two GPUs; in "
    "parallel its groups are of 1, 2 and 4 GPUs, beside one that decodes."
)


def on_cores(chunks: int) -> dict[str, dict[str, float] | None]:
    """Milliseconds by arrangement; None where this machine has too few cores."""
    cores = os.cpu_count() or 1
    found: dict[str, dict[str, float] | None] = {}
    for name, way in WAYS.items():
        found[name] = measured(way, chunks) if way.cores <= cores else None
        print(name, found[name] or f"needs {way.cores} cores", flush=True)
    return found


def on_gpus() -> dict[str, list[dict[str, Any]]]:
    """Milliseconds of every arrangement: middle, and both ends of the inputs."""
    table: dict[str, list[dict[str, Any]]] = {}
    for side in SIDES:
        ends = [list(estimates(side, end)) for end in ("middle", "low", "high")]
        table[str(side)] = [
            {
                "arrangement": name,
                "gpus": gpus,
                "used": middle.used,
                "sessions": middle.sessions,
                "latency_ms": [round(1e3 * e.latency) for e in (middle, low, high)],
                "period_ms": [round(1e3 * e.period) for e in (middle, low, high)],
            }
            for (name, gpus, middle), (_, _, low), (_, _, high) in zip(*ends, strict=True)
            if middle is not None and low is not None and high is not None
        ]
    return table


def panels(table: Mapping[str, list[dict[str, Any]]]) -> list[Panel]:
    """Latency and period, by size."""
    titles = {"latency_ms": "a chunk's latency, ms", "period_ms": "between chunks, ms"}
    return [
        Panel(
            f"{title}, {side} x {side}",
            {
                f"{gpus} GPU": {name: _value(rows, name, gpus, what) for name in ARRANGEMENTS}
                for gpus in (1, 2, 4, 8)
            },
            line=750.0 if what == "period_ms" else None,
            line_label="real time",
        )
        for side, rows in table.items()
        for what, title in titles.items()
    ]


def _value(rows: list[dict[str, Any]], name: str, gpus: int, what: str) -> Value | None:
    for row in rows:
        if (row["arrangement"], row["gpus"]) == (name, gpus):
            return Value(*row[what])
    return None


def figures(cores: Mapping[str, dict[str, float] | None]) -> dict[str, Figure]:
    """What is followed: what was measured."""
    alone = cores["self-contained"]
    assert alone is not None, "one core is enough for it"
    parts = {what: Figure(alone[what], "ms") for what in ("denoise", "context", "decode")}
    return parts | {
        f"{what}, {name}": Figure(found[what], "ms")
        for name, found in cores.items()
        if found is not None
        for what in ("latency", "period")
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=20, help="that count, of each arrangement")
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--dry", action="store_true", help="record nothing, draw nothing")
    asked = parser.parse_args()
    before = read(NAME)
    if asked.model and before is None:
        parser.error("nothing was measured yet")
    cores = before.details["cores"] if asked.model and before else on_cores(asked.chunks)
    table = on_gpus()
    if asked.dry:
        return
    grouped(panels(table), PICTURE, caption=CAPTION)
    inputs = {name: asdict(given) for name, given in INPUTS.items()}
    details = {"cores": cores, "gpus": table, "inputs": inputs}
    print(record(NAME, figures(cores), details))


if __name__ == "__main__":
    main()
