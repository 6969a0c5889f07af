"""What is tried, and what is counted of it.

Every scenario makes a fleet of its own, lets callers come, does something to it and returns plain
numbers. Virtual seconds throughout.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.scale.callers import Caller, Fate
from benchmarks.scale.engines import WORK
from benchmarks.scale.fleet import ZONES, Fleet, Gateway, Size, fleet
from services.runtime.metrics import Engine

Result = dict[str, Any]

BUSY = 0.6  # of the engines' slots, where nothing else is said
_FOREVER = 1e6
_LEARN_SECONDS = 8.0  # until gateways have heard of enough replicas
_OLD_SECONDS = 85.0  # an old cluster is kept beside the new one: the longest attachment, and more
NOTICE_SECONDS = 10.0  # of ingress and load balancer, for machines that are gone without a word


@dataclass
class Second:
    """What was seen of one second."""

    at: float
    sessions: int
    gateways: list[int]  # sessions of each
    replicas: dict[Engine, list[int]]  # attachments of each
    operations: int
    bytes: int
    hand_overs: int
    attachments: int


@dataclass
class Run:
    """One fleet and its callers."""

    fleet: Fleet
    callers: list[Caller] = field(default_factory=list)
    tasks: list[asyncio.Task[Fate]] = field(default_factory=list)
    seconds: list[Second] = field(default_factory=list)

    def call(self, *, seconds: float = _FOREVER, patience: float = 0.0) -> None:
        caller = Caller(self.fleet, seconds=seconds, patience=patience)
        self.callers.append(caller)
        self.tasks.append(asyncio.create_task(caller.run()))

    async def come(self, callers: int, *, within: float, patience: float = 30.0) -> None:
        for _ in range(callers):
            self.call(patience=patience)
            await asyncio.sleep(within / callers)

    @property
    def fates(self) -> list[Fate]:
        return [caller.fate for caller in self.callers]

    async def watch(self) -> None:
        clock, redis = asyncio.get_running_loop().time, self.fleet.redis
        moves = made = operations = size = 0
        while True:
            await asyncio.sleep(1.0)
            was = moves, made, operations, size
            moves, made = self._moves(), self._made()
            operations, size = redis.operations, redis.traffic
            self.seconds.append(
                Second(
                    at=clock(),
                    sessions=sum(fate.ready is not None and not fate.over for fate in self.fates),
                    gateways=[len(one.connections) for one in self.fleet.gateways],
                    replicas={
                        pool.engine: [replica.running for replica in pool.replicas]
                        for pool in (self.fleet.score, self.fleet.vae)
                    },
                    operations=operations - was[2],
                    bytes=size - was[3],
                    hand_overs=moves - was[0],
                    attachments=made - was[1],
                )
            )

    def _moves(self) -> int:
        return round(self.fleet.total(lambda metrics: metrics.hand_overs, outcome="ok"))

    def _made(self) -> int:
        return round(self.fleet.total(lambda metrics: metrics.attach_seconds))


@asynccontextmanager
async def run(size: Size, **options: Any) -> AsyncIterator[Run]:
    """A fleet whose gateways know of its replicas; callers that still call are cut off."""
    random.seed(1)
    async with fleet(size, **options) as made:
        await asyncio.sleep(_LEARN_SECONDS)
        running = Run(made)
        watching = asyncio.create_task(running.watch())
        yield running
        watching.cancel()
        for task in running.tasks:
            task.cancel()
        done = await asyncio.gather(*running.tasks, return_exceptions=True)
        for end in done:  # a fault of ours ends the run; a caller's is in its fate
            if isinstance(end, Exception):
                raise end


# ---- Scenarios ----


async def steady(
    sessions: int, seconds: float, *, within: float = 10.0, settle: float = 3.0
) -> Result:
    """So many calls that go on: what they cost Redis, and how they are spread."""
    size = Size.for_sessions(sessions, busy=BUSY)
    async with run(size) as on:
        await on.come(sessions, within=within)
        await asyncio.sleep(settle)
        on.fleet.redis.forget_counts()
        on.seconds.clear()
        began = time.process_time()
        since = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        spent = time.process_time() - began
        return {
            "fleet": _described(size),
            "seconds": seconds,
            "processor_ms_per_session_second": round(1000 * spent / sessions / seconds, 2),
            "redis": redis_of(on, seconds, sessions),
            "hot_spots": hot_spots(on.seconds),
            "hand_overs": herd([second.hand_overs for second in on.seconds[1:]]),
            "stalls": stalls(on.fates, since),
            "ended": _ended(on.fates),
        }


async def crowd(
    callers: int, places: int, *, gateways: int, call_seconds: float = 20.0, patience: float = 60.0
) -> Result:
    """Callers who come within ten seconds, more than there is room for."""
    size = Size(
        gateways=gateways,
        score=round(places / WORK[Engine.SCORE].slots),
        vae=round(places / WORK[Engine.VAE].slots),
        queue=callers,
    )
    async with run(size) as on:
        for _ in range(callers):
            on.call(seconds=random.lognormvariate(np.log(call_seconds), 0.3), patience=patience)
            await asyncio.sleep(10.0 / callers)
        await asyncio.gather(*on.tasks)
        fates = on.fates
        let_in = [fate for fate in fates if fate.ready is not None]
        waits = [fate.ready - fate.came for fate in let_in if fate.ready is not None]
        full = _while_waiting(fates, on.seconds)
        return {
            "fleet": _described(size),
            "callers": callers,
            "places": places,
            "patience": patience,
            "most_at_once": max(second.sessions for second in on.seconds),
            "sessions_while_somebody_waits": _share(full, places),
            "waited": quantiles(waits),
            "overtaken": _overtaken(let_in),
            "refused_by_engines": _refused(on.fleet),
            "ended": _ended(fates),
            "redis": {
                "operations_per_second_at_most": max(second.operations for second in on.seconds)
            },
            "sessions": [second.sessions for second in on.seconds],
        }


async def zone_lost(
    sessions: int,
    *,
    silent: bool,
    busy: float = BUSY,
    within: float = 10.0,
    before: float = 20.0,
    after: float = 60.0,
) -> Result:
    """A third of gateways and engines is gone at once."""
    size = Size.for_sessions(sessions, busy=busy)
    async with run(size) as on:
        await on.come(sessions, within=within)
        await asyncio.sleep(before)
        when = asyncio.get_running_loop().time()
        alive = [fate for fate in on.fates if fate.ready is not None and not fate.over]
        on.fleet.redis.forget_counts()
        await on.fleet.lose_zone(0, silent=silent, notice_seconds=NOTICE_SECONDS)
        await asyncio.sleep(when + after - asyncio.get_running_loop().time())
        then = [second for second in on.seconds if second.at > when + 1]
        late = [at for fate in alive for at, _ in fate.stalls if at > when]
        return {
            "fleet": _described(size),
            "busy_before": busy,
            "sessions": len(alive),
            "ended": _ended(alive),
            "resumed_at_another_gateway": sum(fate.resumes > 0 for fate in alive),
            "stalls": stalls(alive, when),
            "seconds_to_the_last_stall": round(max(late, default=when) - when, 1),
            "attachments_a_second_at_most": max(second.attachments for second in then),
            "redis": {
                "bytes_per_second_at_most": max(second.bytes for second in then),
                "latency": quantiles(on.fleet.redis.latencies, digits=4),
                "timeouts": on.fleet.redis.timeouts,
            },
            "hot_spots": hot_spots(then[-30:]),
        }


async def upgrade(sessions: int) -> Result:
    """A new cluster of engines beside the old one, and one gateway after the other anew."""
    size = Size.for_sessions(sessions, busy=BUSY)
    async with run(size) as on:
        await on.come(sessions, within=20.0)
        await asyncio.sleep(20.0)
        when = asyncio.get_running_loop().time()
        on.seconds.clear()
        alive = [fate for fate in on.fates if fate.ready is not None and not fate.over]
        cut = await _new_engines(on.fleet, size)
        engines = stalls(alive, when)
        moved = asyncio.get_running_loop().time()
        await _new_gateways(on.fleet)
        return {
            "fleet": _described(size),
            "sessions": len(alive),
            "ended": _ended(alive),
            "engines": {
                "attachments_cut_off": cut,
                "stalls": engines,
                "hand_overs": herd([each.hand_overs for each in on.seconds if each.at <= moved]),
            },
            "gateways": {
                "stalls": stalls(alive, moved),
                "broken_connections": sum(fate.resumes for fate in alive),
            },
            "hot_spots": hot_spots(on.seconds[-10:]),
        }


async def _new_engines(on: Fleet, size: Size) -> int:
    """Serve's way: new streams go to the new cluster, old ones leave by their age."""
    old = on.replicas
    on.score.replicas, on.vae.replicas = [], []
    for engine, count in ((Engine.SCORE, size.score), (Engine.VAE, size.vae)):
        for number in range(count):
            await on.add_replica(engine, number % ZONES)
    await asyncio.sleep(_OLD_SECONDS)
    cut = sum(replica.running for replica in old)
    for replica in old:
        replica.kill(silent=False)
    return cut


async def _new_gateways(on: Fleet) -> None:
    """Kubernetes' way: one more is started, then one is told to go."""
    for old in list(on.gateways):
        on.add_gateway(old.zone)
        await asyncio.sleep(2.0)
        on.gateways.remove(old)
        on.gone.append(old)
        old.drain.start()
        await _emptied(old)
        old.kill(silent=False)
    await asyncio.sleep(5.0)


async def _emptied(gateway: Gateway) -> None:
    for _ in range(60):
        if not gateway.connections:
            return
        await asyncio.sleep(0.5)


# ---- Figures ----


def redis_of(on: Run, seconds: float, sessions: int) -> Result:
    redis = on.fleet.redis
    return {
        "operations_per_session_second": round(redis.operations / seconds / sessions, 3),
        "bytes_per_session_second": round(redis.traffic / seconds / sessions),
        "operations_per_second": round(redis.operations / seconds),
        "bytes_per_second": round(redis.traffic / seconds),
        "busy_by_the_model": round(redis.busy_seconds / seconds, 3),
        "latency": quantiles(redis.latencies, digits=4),
        "timeouts": redis.timeouts,
        "by_operation": {
            name: {
                "per_second": round(tally.operations / seconds, 1),
                "bytes_in": round(tally.bytes_in / tally.operations),
                "bytes_out": round(tally.bytes_out / tally.operations),
            }
            for name, tally in sorted(redis.tallies.items())
        },
    }


def hot_spots(seconds: Sequence[Second]) -> Result:
    """The fullest against the mean, over time."""
    found: Result = {}
    for name, counts in {
        "gateways": [second.gateways for second in seconds],
        "score": [second.replicas[Engine.SCORE] for second in seconds],
        "vae": [second.replicas[Engine.VAE] for second in seconds],
    }.items():
        found[name] = {
            "mean": round(float(np.mean([np.mean(each) for each in counts])), 2),
            "fullest": int(np.max([np.max(each) for each in counts])),
            "fullest_over_mean": round(
                float(np.mean([np.max(each) / max(np.mean(each), 1e-9) for each in counts])), 2
            ),
        }
    for engine in (Engine.SCORE, Engine.VAE):
        slots = WORK[engine].slots
        over = [np.mean(np.array(second.replicas[engine]) > slots) for second in seconds]
        found[engine]["share_beyond_slots"] = round(float(np.mean(over)), 4)
    return found


def herd(per_second: Sequence[int]) -> Result:
    """How evenly in time something happens: 1 is a crowd's chance (Poisson)."""
    mean = float(np.mean(per_second)) if per_second else 0.0
    return {
        "per_second": round(mean, 2),
        "most_in_a_second": max(per_second, default=0),
        "variance_over_mean": round(float(np.var(per_second)) / mean, 2) if mean else 0.0,
    }


def stalls(fates: Iterable[Fate], since: float) -> Result:
    """Seconds for which each caller's picture stood still."""
    still = [sum(seconds for at, seconds in fate.stalls if at > since) for fate in fates]
    return {
        "callers_with_any": sum(seconds > 0.02 for seconds in still),
        "seconds_per_caller": quantiles(still),
    }


def quantiles(values: Sequence[float], *, digits: int = 2) -> Result:
    if not values:
        return {}
    low, high = np.quantile(values, [0.5, 0.99])
    return {
        "p50": round(float(low), digits),
        "p99": round(float(high), digits),
        "most": round(float(max(values)), digits),
    }


def _described(size: Size) -> Result:
    slots = min(
        size.score * WORK[Engine.SCORE].slots,
        size.vae * WORK[Engine.VAE].slots,
    )
    return {"gateways": size.gateways, "score": size.score, "vae": size.vae, "places": slots}


def _ended(fates: Iterable[Fate]) -> dict[str, int]:
    return dict(Counter(fate.ended for fate in fates if fate.ended))


def _while_waiting(fates: Sequence[Fate], seconds: Sequence[Second]) -> list[int]:
    """Sessions in every second in which somebody has waited for longer than a second."""
    return [
        second.sessions
        for second in seconds
        if any(
            fate.came < second.at - 2 and (fate.ready or fate.over or 0) > second.at
            for fate in fates
        )
    ]


def _share(counts: Sequence[int], places: int) -> Result:
    if not counts:
        return {}
    return {
        "seconds": len(counts),
        "mean": round(float(np.mean(counts)) / places, 3),
        "least": round(min(counts) / places, 3),
    }


def _overtaken(let_in: Sequence[Fate]) -> float:
    """Share of callers who were let in after somebody who came two seconds later or more."""
    in_turn = sorted(let_in, key=lambda fate: fate.ready or 0.0)
    newest, found = -1e9, 0
    for fate in in_turn:
        found += newest > fate.came + 2.0
        newest = max(newest, fate.came)
    return round(found / max(1, len(in_turn)), 4)


def _refused(on: Fleet) -> int:
    total = 0.0
    for engine in ("score", "vae"):
        labels = {"engine": engine, "reason": "capacity"}
        total += on.engine_registry.get_sample_value("tm_engine_refusals_total", labels) or 0.0
    return round(total)
