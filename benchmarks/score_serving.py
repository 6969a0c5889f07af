"""What serving adds to a chunk of score: python -m benchmarks.score_serving

A transformer of next to no work draws latents of the size that 512 x 512 has (393 KB a chunk), and
the time from asking to having them is taken in the process itself, over gRPC on a server of ours,
and through Ray Serve's ingress. What the last two take longer is the price, to be held against a
chunk's period.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from ray import serve

from benchmarks.record import Figure, record
from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from services.score.app import deployed
from services.score.config import AnchorConfig, DitConfig, LatentConfig, StreamConfig
from talkingmachines.v1 import score_pb2
from talkingmachines.v1.score_pb2_grpc import ScoreServiceStub
from tests import ray_cluster
from tests.score import served, small
from tests.score.calls import Call
from tests.score.served import Caller

CHUNKS = 60
WARM = 5
PERIOD = 0.75  # seconds: 12 frames at 16 fps


def main() -> None:
    torch.set_num_threads(1)
    config = small.config(
        text=None,
        clip=None,
        dim=16,
        ffn_dim=16,
        heads=1,
        layers=1,
        patch=(1, 8, 8),
        latent=LatentConfig(channels=16),
        anchor=AnchorConfig(mask_channels=0),
        stream=StreamConfig(fps=16, width=512, height=512),
    )
    folder = served.write_checkpoint(Path(tempfile.mkdtemp()), config)
    seconds = {"engine": in_process(config, folder), "gRPC": asyncio.run(own(config, folder))}
    with ray_cluster.cluster(["score"]) as address:
        serve.run(deployed(served.settings(folder)), name="score", route_prefix="/score")
        seconds["Ray Serve"] = asyncio.run(through_serve(config, address))
    table = {name: summary(taken, seconds["engine"]) for name, taken in seconds.items()}
    for name, row in table.items():
        print(name, *(f"{key} {value}" for key, value in row.items()), sep="  ")
    added = {
        f"added by {name}": Figure(row["added"], "ms")
        for name, row in table.items()
        if name != "engine"
    }
    record("score-serving", added, {"chunks": CHUNKS, "ms": table})


def summary(taken: list[float], engine: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(taken)
    added = statistics.median(taken) - statistics.median(engine)
    return {
        "median": round(1e3 * statistics.median(taken), 2),
        "95 %": round(1e3 * ordered[int(0.95 * len(ordered))], 2),
        "added": round(1e3 * added, 2),
        "of a period": round(added / PERIOD, 4),
    }


def in_process(config: DitConfig, folder: Path) -> list[float]:
    engine, call, taken = served.engine(folder), Call(config), []
    call.open(engine)
    for _ in range(CHUNKS):
        chunk = call.next()
        began = perf_counter()
        engine.submit(call.name, chunk)
        outcomes = engine.step()
        taken.append(perf_counter() - began)
        call.take(outcomes)
        engine.settle()
    return taken[WARM:]


async def own(config: DitConfig, folder: Path) -> list[float]:
    async with served.serving(served.settings(folder)) as there:
        return await drawn(config, there.stub)


async def through_serve(config: DitConfig, address: str) -> list[float]:
    metadata = (("application", "score"),)
    async with open_channel(Peer(address=address), metadata=metadata) as channel:
        return await drawn(config, ScoreServiceStub(channel))


async def drawn(config: DitConfig, stub: Any) -> list[float]:
    loaded = await stub.Describe(score_pb2.ScoreServiceDescribeRequest())
    caller = await Caller(stub, Call(config), loaded.checkpoint).attach()
    taken = []
    for _ in range(CHUNKS):
        caller.ask()
        began = perf_counter()
        await caller.latents()
        taken.append(perf_counter() - began)
        await asyncio.sleep(0.05)  # the context pass has its time, as it has in a session
    return taken[WARM:]


if __name__ == "__main__":
    main()
