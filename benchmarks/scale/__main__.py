"""How the fleet behaves with many calls: python -m benchmarks.scale [--preset medium] [SCENARIO...]

The gateway's own code and the replicas' own rules, synthetic engines, a real Redis, virtual time.
Records benchmarks/results/scale.json; scenarios that are not named keep their last figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from benchmarks.machine import describe, describe_run
from benchmarks.record import read, record
from benchmarks.scale import costs, scenarios
from benchmarks.scale.clock import run_simulated
from benchmarks.scale.report import figures

Presets = Mapping[str, Callable[[], dict[str, Any]]]

SMALL: Presets = {
    "costs": lambda: costs.run(sessions=50, waiting=10, replicas=(10, 100), times=20),
    "steady": lambda: run_simulated(scenarios.steady(20, 5.0, within=3.0)),
    "crowd": lambda: run_simulated(scenarios.crowd(48, 16, gateways=3, call_seconds=4.0)),
    "zone killed": lambda: run_simulated(
        scenarios.zone_lost(12, silent=False, within=2.0, before=4.0, after=15.0)
    ),
}
MEDIUM: Presets = {
    "costs": lambda: costs.run(
        sessions=10_000, waiting=1_000, replicas=(100, 1_000, 5_000), times=200
    ),
    "steady 100": lambda: run_simulated(scenarios.steady(100, 80.0)),
    "crowd 150": lambda: run_simulated(scenarios.crowd(375, 150, gateways=6)),
    "zone killed 100": lambda: run_simulated(scenarios.zone_lost(100, silent=False)),
    "zone silent 100": lambda: run_simulated(scenarios.zone_lost(100, silent=True)),
    "upgrade 60": lambda: run_simulated(scenarios.upgrade(60)),
}
LARGE: Presets = {
    "steady 1000": lambda: run_simulated(scenarios.steady(1_000, 10.0)),
    "steady 10000": lambda: run_simulated(scenarios.steady(10_000, 2.0, within=2.0, settle=1.0)),
    "crowd 400": lambda: run_simulated(scenarios.crowd(1_000, 400, gateways=10)),
    "zone killed 400": lambda: run_simulated(scenarios.zone_lost(400, silent=False)),
    "zone silent 400": lambda: run_simulated(scenarios.zone_lost(400, silent=True)),
    "upgrade 300": lambda: run_simulated(scenarios.upgrade(300)),
}
PRESETS = {"small": SMALL, "medium": MEDIUM, "large": LARGE}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    parser.add_argument("scenario", nargs="*", help="all, unless named")
    given = parser.parse_args()
    # Thousands of sessions log their ends; tasks by the hundred thousand are looked through less.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    gc.set_threshold(200_000, 50, 100)
    preset = PRESETS[given.preset]
    if unknown := set(given.scenario) - set(preset):
        parser.error(f"no such scenario: {min(unknown)}; there are {', '.join(preset)}")
    for name in given.scenario or preset:
        began = time.perf_counter()
        result = preset[name]()
        print(f"== {name} ({time.perf_counter() - began:.0f} s)\n{json.dumps(result)}", flush=True)
        if not given.dry:
            keep(name, result)


def keep(name: str, result: dict[str, Any]) -> None:
    """Beside what other runs recorded."""
    kept = read("scale")
    about = {"machine": describe() | describe_run()}
    results = {**(kept.details if kept else {}), name: about | result}
    record("scale", figures(results), results)


if __name__ == "__main__":
    main()
