"""Whether there is room when callers come: python -m benchmarks.autoscale

Arrivals of a day, of a crowd and of another region that fails are replayed, second by second,
against the policy that Serve's controller runs in the fleet (`services.runtime.scaling`), Serve's
own policy (its real code) and the formula that Kubernetes scales gateways by, with the chart's
values. A replica takes minutes to start; one that is taken away is paid for until its sessions have
left and its pod is given back. What comes out: who was refused, who waited for how long, what it
cost, and what it would have cost to know the future.

Time, calls and GPUs are simulated; nothing here was measured on a cluster.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
import yaml
from numpy.random import Generator, default_rng

from benchmarks.record import Figure, record
from helm.schema import CHART
from services.runtime.attachments import Terms
from services.runtime.replicas import Replicas
from services.runtime.scaling import Headroom

HOUR, DAY = 3600, 86400
CALL_SECONDS, CALL_SPREAD = 300.0, 0.8  # median and log-normal spread of a call's length
PATIENCE = 20  # seconds that a caller waits for a place
# Serve hears of sessions every 10 s, as means over `look_back_period_s` of 12 s.
HEARD_SECONDS, MEAN_SECONDS = 10, 12
IDLE_SECONDS = 600  # before an empty worker's pod is given back: engines.idleSeconds

Arrivals = Sequence[tuple[float, float]]  # when, and for how long the call lasts; by time
Decide = Callable[[float, int, float], int]  # sessions, replicas, now → replicas


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a replica is, in this simulation."""

    slots: int  # sessions at once
    gpus: float  # of one replica
    start_seconds: int  # from being asked for to serving: a node, an image, a model
    least: int
    most: int


FLEETS = {
    "one session on 4 GPUs": Fleet(slots=1, gpus=4, start_seconds=240, least=2, most=400),
    "6 sessions on a GPU": Fleet(slots=6, gpus=1, start_seconds=120, least=2, most=100),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the callers, and what it cost."""

    callers: int
    refused: float  # share of all
    waited: float  # share of those let in who waited at all
    wait_p99_seconds: float  # of all that were let in
    gpu_hours: float
    best_gpu_hours: float  # knowing the future, nobody refused, nobody waiting
    most_replicas: int

    @property
    def cost(self) -> float:
        """Times the best possible."""
        return self.gpu_hours / self.best_gpu_hours


# ---- Arrivals ----


def calls(rng: Generator, seconds: int, rate: Callable[[float], float], most: float) -> Arrivals:
    """Poisson arrivals at `rate` a second, which is never above `most`."""
    count = rng.poisson(most * seconds)
    times = np.sort(rng.uniform(0, seconds, count))
    kept = times[rng.uniform(0, most, count) < [rate(time) for time in times]]
    lengths = rng.lognormal(math.log(CALL_SECONDS), CALL_SPREAD, len(kept)).clip(20, 7200)
    return list(zip(kept.tolist(), lengths.tolist(), strict=True))


def diurnal(rng: Generator) -> Arrivals:
    """A day: quiet at four in the morning, ten times as much at four in the afternoon."""

    def rate(time: float) -> float:
        return 0.008 + 0.072 * (0.5 - 0.5 * math.cos(2 * math.pi * (time / HOUR - 4) / 24)) ** 2

    return calls(rng, DAY, rate, 0.08)


def flash_crowd(rng: Generator) -> Arrivals:
    """An ordinary evening, and eight times as many callers within two minutes, for 20 minutes."""

    def rate(time: float) -> float:
        since = time - 2 * HOUR
        rise = min(max(since / 120, 0), 1) - min(max((since - 1320) / 120, 0), 1)
        return 0.02 * (1 + 7 * rise)

    return calls(rng, 4 * HOUR, rate, 0.16)


def regional_failover(rng: Generator) -> Arrivals:
    """Another region fails: its calls come at once, and so do its callers from then on."""
    when = 2 * HOUR
    own = calls(rng, 4 * HOUR, lambda time: 0.04 * (1 + (time >= when)), 0.08)
    running = [(when + rng.uniform(0, 10), length) for _, length in own[:15]]
    return sorted([*own, *running])


TRACES: Mapping[str, Callable[[Generator], Arrivals]] = {
    "diurnal": diurnal,
    "flash crowd": flash_crowd,
    "regional failover": regional_failover,
}


# ---- The fleet, second by second ----


class Sessions:
    """Who calls, who waits, who was refused."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._coming = deque(arrivals)
        self._waiting = deque[tuple[float, float]]()
        self._ends: list[float] = []
        self.refused = 0
        self.waits: list[float] = []

    @property
    def running(self) -> int:
        return len(self._ends)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def pass_second(self, now: float, places: int) -> None:
        while self._ends and self._ends[0] <= now:
            heappop(self._ends)
        while self._coming and self._coming[0][0] <= now:
            self._waiting.append(self._coming.popleft())
        while self._waiting and self.running < places:
            came, length = self._waiting.popleft()
            wait = max(0.0, now - came - 1)  # a second's tick is nobody's wait
            self.waits.append(wait)
            heappush(self._ends, now + length)
        while self._waiting and now - self._waiting[0][0] > PATIENCE:
            self._waiting.popleft()
            self.refused += 1


class Machines:
    """Replicas that serve, start or leave; and what they cost."""

    def __init__(self, fleet: Fleet, *, leave_seconds: float) -> None:
        self._fleet = fleet
        self._leave = leave_seconds
        self._ready_at = deque(0.0 for _ in range(fleet.least))
        self._gone_at: list[float] = []
        self.paid_seconds = 0.0
        self.most = fleet.least

    @property
    def asked_for(self) -> int:
        return len(self._ready_at)

    def places(self, now: float) -> int:
        return self._fleet.slots * sum(ready <= now for ready in self._ready_at)

    def become(self, wanted: int, now: float) -> None:
        wanted = min(max(wanted, self._fleet.least), self._fleet.most)
        while len(self._ready_at) < wanted:
            self._ready_at.append(now + self._fleet.start_seconds)
        while len(self._ready_at) > wanted:
            self._ready_at.pop()
            heappush(self._gone_at, now + self._leave)
        self.most = max(self.most, wanted)

    def pass_second(self, now: float) -> None:
        while self._gone_at and self._gone_at[0] <= now:
            heappop(self._gone_at)
        self.paid_seconds += len(self._ready_at) + len(self._gone_at)


def replay(
    arrivals: Arrivals, fleet: Fleet, decide: Decide, *, sees_waiting: bool = False
) -> Outcome:
    """What becomes of these callers.

    Args:
        sees_waiting: the policy counts those who wait with those who are served. In the fleet it
            does not: they wait in the gateways' queue, and Serve counts attachments.
    """
    sessions = Sessions(arrivals)
    machines = Machines(fleet, leave_seconds=Terms().longest_seconds + IDLE_SECONDS)
    heard = deque[int](maxlen=MEAN_SECONDS)
    end = arrivals[-1][0] + HOUR
    told = 0.0
    for now in np.arange(0, end).tolist():
        sessions.pass_second(now, machines.places(now))
        machines.pass_second(now)
        heard.append(sessions.running + (sessions.waiting if sees_waiting else 0))
        if now % HEARD_SECONDS == 0:
            told = sum(heard) / len(heard)
        machines.become(decide(told, machines.asked_for, now), now)
    waits = np.array(sessions.waits)
    return Outcome(
        callers=len(arrivals),
        refused=round(sessions.refused / len(arrivals), 5),
        waited=round(float((waits > 0).mean()), 5),
        wait_p99_seconds=round(float(np.quantile(waits, 0.99)), 1),
        gpu_hours=round(machines.paid_seconds * fleet.gpus / HOUR, 1),
        best_gpu_hours=round(best(arrivals, fleet, end) * fleet.gpus / HOUR, 1),
        most_replicas=machines.most,
    )


def best(arrivals: Arrivals, fleet: Fleet, end: float) -> float:
    """Replica seconds of whoever knows the future and lets nobody wait.

    Sessions can be moved, so the n-th replica is needed just when more than n - 1 replicas' slots
    are taken. Each need is paid for from its start on; a gap shorter than that is paid for, too.
    """
    changes = sorted(
        [(at, 1) for at, _ in arrivals] + [(at + length, -1) for at, length in arrivals]
    )
    needed_since, paid, level = dict[int, float](), 0.0, 0
    last_end = dict[int, float]()
    for at, change in changes:
        before = -(-level // fleet.slots)
        level += change
        after = -(-level // fleet.slots)
        if after > before:
            needed_since[after] = at
        elif after < before:
            gap = needed_since[before] - last_end.get(before, -math.inf)
            paid += at - needed_since.pop(before) + min(gap, fleet.start_seconds)
            last_end[before] = at
    return max(paid, fleet.least * end)


# ---- Policies ----


def ours(replicas: Replicas, slots: int) -> Decide:
    policy = Headroom(slots=slots, **replicas.policy)
    return lambda sessions, target, now: policy.decide(sessions, replicas=target, now=now)


def serves_own(fleet: Fleet) -> Decide:
    """Serve's stock policy, in its own code, with the delays that come after it."""
    from ray.serve._private.common import DeploymentID
    from ray.serve.autoscaling_policy import (
        _apply_autoscaling_config,
        replica_queue_length_autoscaling_policy,
    )
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    config = AutoscalingConfig(
        min_replicas=fleet.least,
        max_replicas=fleet.most,
        target_ongoing_requests=max(1.0, 0.8 * fleet.slots),
        upscale_delay_s=2.0,
        downscale_delay_s=600.0,
    )
    policy, state = _apply_autoscaling_config(replica_queue_length_autoscaling_policy), {}
    clock = _Clock()

    def decide(sessions: float, target: int, now: float) -> int:
        nonlocal state
        clock.now = now
        context = AutoscalingContext(
            deployment_id=DeploymentID("score"),
            deployment_name="score",
            app_name="score",
            current_num_replicas=target,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=sessions,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=fleet.least,
            capacity_adjusted_max_replicas=fleet.most,
            policy_state=state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=config,
        )
        with clock:
            decided, state = policy(context)
        return int(decided)

    return decide


class _Clock:
    """Serve's delays read the wall clock; here it shows the simulation's time."""

    now = 0.0

    def __enter__(self) -> None:
        import ray.serve.autoscaling_policy as module

        self._real = module.time
        module.time = self

    def time(self) -> float:
        return self.now

    def __exit__(self, *_: object) -> None:
        import ray.serve.autoscaling_policy as module

        module.time = self._real


# ---- Gateways ----


def gateways(arrivals: Arrivals) -> dict[str, float]:
    """Pods by Kubernetes' formula and the chart's values, and how full the fullest became."""
    knobs = yaml.safe_load((CHART / "values-gpu-fleet.yaml").read_text())["gateway"]["autoscaling"]
    knobs = yaml.safe_load((CHART / "values.yaml").read_text())["gateway"]["autoscaling"] | knobs
    target, quiet = knobs["sessionsPerGateway"], knobs["quietSeconds"]
    sessions, pods, wanted_of_late = Sessions(arrivals), knobs["least"], deque[tuple[float, int]]()
    pod_seconds, fullest, fewer_at = 0.0, 0.0, -math.inf
    for now in np.arange(0, arrivals[-1][0] + HOUR).tolist():
        sessions.pass_second(now, 10**9)
        pod_seconds += pods
        fullest = max(fullest, sessions.running / pods)
        if now % 15:
            continue
        ratio = sessions.running / pods / target
        wanted = pods if abs(ratio - 1) <= 0.1 else math.ceil(pods * ratio)
        wanted_of_late.append((now, wanted))
        while now - wanted_of_late[0][0] > quiet:
            wanted_of_late.popleft()
        if wanted > pods:
            pods = min(wanted, max(2 * pods, pods + 4), knobs["most"])
        elif now - fewer_at >= 900:  # gateway.settings.listen.drain_seconds
            least = max(max(count for _, count in wanted_of_late), knobs["least"])
            if least < pods:
                pods, fewer_at = pods - 1, now
    return {"pod_hours": round(pod_seconds / HOUR, 1), "fullest_sessions": round(fullest, 1)}


# ---- What is tried ----


def tried() -> Iterator[tuple[str, Replicas]]:
    """The defaults, and what happens when each is another."""
    chosen = Replicas(most=400)
    yield "defaults", chosen
    for field, values in {
        "spare": (0, 2, 4, 8),
        "busy": (0.6, 0.7, 0.8, 0.9),
        "ahead_seconds": (0.0, 60.0, 120.0, 240.0),
        "quiet_seconds": (120.0, 300.0, 600.0, 1200.0),
        "step_seconds": (10.0, 30.0, 120.0),
    }.items():
        for value in values:
            if value != getattr(chosen, field):
                yield f"{field} {value:g}", chosen.model_copy(update={field: value})


def main() -> None:
    results: dict[str, Any] = {"call_seconds_median": CALL_SECONDS, "patience_seconds": PATIENCE}
    figures = dict[str, Figure]()
    results["fleets"] = {name: asdict(fleet) for name, fleet in FLEETS.items()}
    results["defaults"] = Replicas(most=400).policy
    for trace, make in TRACES.items():
        results[trace] = {"gateways": gateways(make(default_rng(1)))}
        for name, fleet in FLEETS.items():
            arrivals = make(default_rng(1))
            rows = {"Serve's own policy": replay(arrivals, fleet, serves_own(fleet))}
            for what, replicas in tried():
                rows[what] = replay(arrivals, fleet, ours(replicas, fleet.slots))
            policy = ours(Replicas(most=400), fleet.slots)
            rows["those who wait seen"] = replay(arrivals, fleet, policy, sees_waiting=True)
            results[trace][name] = {what: asdict(row) for what, row in rows.items()}
            chosen = rows["defaults"]
            figures[f"refused, {trace}, {name}"] = Figure(100 * chosen.refused, "%")
            figures[f"cost, {trace}, {name}"] = Figure(round(chosen.cost, 2), "times the best")
            print(f"\n{trace}, {name}: best {rows['defaults'].best_gpu_hours} GPU hours")
            for what, row in rows.items():
                print(
                    f"  {what:22} refused {row.refused:7.2%}, waited {row.waited:7.2%}, "
                    f"p99 {row.wait_p99_seconds:4.1f} s, cost {row.cost:.2f} x best"
                )
    if "--dry" not in sys.argv[1:]:
        print(record("autoscale", figures, results))


if __name__ == "__main__":
    main()
