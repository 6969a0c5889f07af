"""What the whole fleet costs beside its engines' work: python -m benchmarks.fleet [--seconds 30]

The real fleet on this machine with the shipped model, started for this and idle at first; then one
caller who speaks in real time. Every process's processor time is the kernel's; from the engines' is
taken away what their device thread (the busiest) and their encoder worked, from all what they take
when nobody calls. What is left is the price of a fleet: Ray, gRPC, copies, Python. Besides:
starting, attaching, memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.converse import page
from benchmarks.processes import Process
from benchmarks.record import Figure, record
from talkingmachines.cli.server import own_fleet
from talkingmachines.client import Client
from talkingmachines.local import DATA_VARIABLE, Addresses
from talkingmachines.media import Pcm
from talkingmachines.picture import Codec, VideoFormat, VideoFrame
from talkingmachines.session import Session
from talkingmachines.speech import live

RATE = 16_000
WARM_SECONDS = 6.0
KINDS = {  # by a part of the command line
    "services.gateway": "gateway",
    "valkey": "Redis",
    "ServeReplica:score": "score",
    "ServeReplica:vae": "VAE",
    "ProxyActor": "Ray's ingress",
    "ServeController": "Ray's controller",
}
REST = "Ray's own and the rest"
ENGINES = ("score", "VAE")


@dataclass(frozen=True, slots=True)
class Seen:
    """The fleet at one moment; seconds since it began."""

    at: float
    processor: Mapping[str, float]
    threads: Mapping[str, Mapping[int, float]]  # of the same
    memory: Mapping[str, int]  # bytes
    metrics: Mapping[str, float]


async def seen(addresses: Addresses, *, ends: bool = False) -> Seen:
    """Args: ends: of an interval, which asking for metrics must not be part of."""
    told = {} if ends else await metrics(addresses)
    processor, memory = defaultdict[str, float](float), defaultdict[str, int](int)
    threads: dict[str, dict[int, float]] = defaultdict(dict)
    for process, command in descendants(addresses.pid):
        kind = next((kind for part, kind in KINDS.items() if part in command), REST)
        try:
            processor[kind] += process.processor_seconds
            memory[kind] += process.bytes
            if kind in ENGINES:
                threads[kind] |= process.thread_seconds
        except (OSError, IndexError):
            continue  # it has just ended
    at = monotonic()
    return Seen(at, processor, threads, memory, told or await metrics(addresses))


def descendants(pid: int) -> list[tuple[Process, str]]:
    """A process and all that it started, with their command lines."""
    parents: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat[1])].append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        waiting += parents[one]
        try:
            command = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        found.append((Process(one, 0.0), command))
    return found


async def metrics(addresses: Addresses) -> dict[str, float]:
    """Sums and counts of what is looked at, by name and labels."""
    wanted = {"tm_engine_step_seconds", "tm_chunk_seconds", "tm_attach_seconds", "tm_device_busy"}
    found = defaultdict[str, float](float)  # a page has the other engine's as well, at 0
    for places in addresses.metrics.values():
        for place in places:
            try:
                text = await page(place)
            except OSError:
                continue  # a port for a replica that is not there
            for family in text_string_to_metric_families(text):
                if family.name.removesuffix("_seconds") in wanted or family.name in wanted:
                    for sample in family.samples:
                        if not sample.name.endswith(("bucket", "created")):
                            labels = "/".join(sample.labels.values())
                            found[f"{sample.name} {labels}"] += sample.value
    return found


class Interval:
    """Between two moments."""

    def __init__(self, before: Seen, after: Seen) -> None:
        self._before, self._after = before, after
        self.seconds = after.at - before.at

    def processor(self, kind: str) -> float:
        """Milliseconds a second."""
        used = self._after.processor.get(kind, 0.0) - self._before.processor.get(kind, 0.0)
        return 1e3 * used / self.seconds

    def device(self, kind: str) -> float:
        """Of an engine's busiest thread, milliseconds a second."""
        before = self._before.threads.get(kind, {})
        after = self._after.threads.get(kind, {})
        used = [seconds - before.get(thread, 0.0) for thread, seconds in after.items()]
        return 1e3 * max(used, default=0.0) / self.seconds

    def metric(self, name: str) -> float:
        return self._after.metrics.get(name, 0.0) - self._before.metrics.get(name, 0.0)

    def mean(self, name: str, labels: str) -> float:
        """Milliseconds, of a histogram's newest."""
        count = self.metric(f"{name}_count {labels}")
        return 1e3 * self.metric(f"{name}_sum {labels}") / count if count else 0.0

    def rate(self, name: str) -> float:
        """Milliseconds a second."""
        return 1e3 * self.metric(name) / self.seconds


def overhead(idle: Interval, busy: Interval) -> dict[str, float]:
    """Milliseconds of processor time a second of a call, beside the engines' work."""
    work = {
        "score": busy.device("score"),
        "VAE": busy.device("VAE") + busy.rate("tm_engine_step_seconds_sum vae/encode"),
    }
    kinds = [*dict.fromkeys(KINDS.values()), REST]
    return {
        kind: round(busy.processor(kind) - idle.processor(kind) - work.get(kind, 0.0), 2)
        for kind in kinds
    }


def ways(busy: Interval) -> dict[str, float]:
    """Milliseconds of a chunk on the wall clock, by where they are spent."""
    score, vae = (busy.mean("tm_chunk_seconds", stage) for stage in ("score", "vae"))

    def step(engine: str, *stages: str) -> float:
        return sum(busy.mean("tm_engine_step_seconds", f"{engine}/{stage}") for stage in stages)

    drawn, decoded = step("score", "wait", "denoise"), step("vae", "wait", "decode", "encode")
    return {
        "score, asked to answered": round(score, 1),
        "of it drawing, and waiting for the device": round(drawn, 1),
        "of it on the way": round(score - drawn, 1),
        "VAE, asked to last frame": round(vae, 1),
        "of it decoding, encoding, and waiting": round(decoded, 1),
        "of it on the way ": round(vae - decoded, 1),
    }


async def measured(seconds: float) -> dict[str, Any]:
    async with own_fleet(converse=False) as addresses, Client(addresses.address) as client:
        await asyncio.sleep(WARM_SECONDS)
        before = await seen(addresses)
        await asyncio.sleep(seconds / 2)
        idle = Interval(before, await seen(addresses, ends=True))
        began = monotonic()
        async with client.talk(addresses.characters[0], video=VideoFormat(Codec.H264)) as session:
            first = asyncio.get_running_loop().create_future()
            watching = asyncio.create_task(_watch(session, first))
            session.say(live(_speech(WARM_SECONDS + seconds + 5)))
            first_frame = await first - began
            await asyncio.sleep(WARM_SECONDS)
            start = await seen(addresses)
            await asyncio.sleep(seconds)
            end = await seen(addresses, ends=True)
            holds, period = session.statistics.holds, session.spec.chunk_seconds
            watching.cancel()
        busy = Interval(start, end)
        attach = Interval(before, end)
    costs = overhead(idle, busy)
    return {
        "ready_seconds": addresses.ready_seconds,
        "first_frame_ms": round(1e3 * first_frame, 1),
        "attach_ms": {
            kind: round(attach.mean("tm_attach_seconds", kind), 1) for kind in ("score", "vae")
        },
        "holds": holds,
        "period_ms": round(1e3 * period, 1),
        "overhead_ms_per_second": costs,
        "overhead_of_period": round(sum(costs.values()) / 1e3, 4),
        "device_ms_per_second": {kind: round(busy.device(kind), 1) for kind in ENGINES},
        "idle_ms_per_second": {
            kind: round(idle.processor(kind), 2) for kind in [*KINDS.values(), REST]
        },
        "chunk_ms": ways(busy),
        "memory_mib": {kind: round(size / 2**20) for kind, size in end.memory.items()},
    }


async def _watch(session: Session, first: asyncio.Future[float]) -> None:
    async for item in session:
        if isinstance(item, VideoFrame) and not first.done():
            first.set_result(monotonic())


def _speech(seconds: float) -> Pcm:
    noise = np.random.default_rng(0).integers(-9_000, 9_000, int(seconds * RATE), np.int16)
    return Pcm(noise.tobytes(), RATE)


def figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    chunk = found["chunk_ms"]
    return {
        "overhead of a call, of a core": Figure(round(100 * found["overhead_of_period"], 2), "%"),
        "way to score and back": Figure(chunk["of it on the way"], "ms"),
        "way to the VAE and back": Figure(chunk["of it on the way "], "ms"),
        "start of the whole fleet": Figure(found["ready_seconds"], "s"),
        "attach to score": Figure(found["attach_ms"]["score"], "ms"),
        "attach to the VAE": Figure(found["attach_ms"]["vae"], "ms"),
        "first frame of a call": Figure(found["first_frame_ms"], "ms"),
        "memory of the whole fleet": Figure(sum(found["memory_mib"].values()), "MiB"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of the call that count")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[DATA_VARIABLE] = folder
        found = asyncio.run(measured(asked.seconds))
    for what, value in found.items():
        print(what, value)
    if not asked.dry:
        print(record("fleet", figures(found), found))


if __name__ == "__main__":
    main()
