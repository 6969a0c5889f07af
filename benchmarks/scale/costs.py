"""What each of the gateway's scripts costs a real Redis, in seconds of its processor.

Nothing is simulated here: real payloads, real time, and the server's own account of its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry
from redis import Redis
from redis.asyncio import Redis as Client

from benchmarks.scale.store import Costs, real_redis
from services.gateway.admission import Admission, Capacity
from services.gateway.lease import Leases
from services.gateway.replicas import Replica, Replicas
from services.gateway.store import Store
from services.runtime.metrics import Engine, GatewayMetrics
from talkingmachines.media import DataType, Latents, Tensor
from talkingmachines.v1 import media_pb2, score_pb2, storage_pb2

Result = dict[str, Any]

KEEP = 19  # entries of a log: 38 latents for the VAE, and what is not played yet
_SPEECH_BYTES = 24_000  # of 0.75 s at 16 kHz
_CALLER = "caller"


async def costs(*, sessions: int, waiting: int, replicas: tuple[int, ...], times: int) -> Result:
    """Microseconds of Redis' processor per operation, with so many sessions and replicas known."""
    with real_redis() as real:
        url = str(real.connection_pool.connection_kwargs["path"])
        client = Client(unix_socket_path=url)
        metrics = GatewayMetrics(CollectorRegistry())
        store = Store(client, metrics)
        bench = _Bench(real, times)
        try:
            found = await _of_leases(bench, Leases(store, owner="o", window=30.0, metrics=metrics))
            found |= await _of_admission(bench, store, metrics, sessions, waiting)
            found |= await _of_replicas(bench, store, metrics, replicas)
        finally:
            await client.aclose()
    return {"microseconds": found, "sessions": sessions, "waiting": waiting, "entries": KEEP}


class _Bench:
    def __init__(self, real: Redis, times: int) -> None:
        self._real, self._times = real, times

    async def of(self, act: Callable[[int], Awaitable[Any]], *, times: int = 0) -> float:
        """Microseconds of the server's processor for one act."""
        times = times or self._times
        await act(0)  # so that the script is known
        before = self._spent()
        for number in range(1, times + 1):
            await act(number)
        return round(1e6 * (self._spent() - before) / times, 1)

    def _spent(self) -> float:
        told: dict[str, Any] = self._real.info("cpu")
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


async def _of_leases(bench: _Bench, leases: Leases) -> Result:
    payload = bytes(Costs().mark_bytes)
    latents = Latents(1, 1, Tensor(DataType.BFLOAT16, (16, 3, 64, 64), payload))
    speech = media_pb2.Pcm(samples=bytes(_SPEECH_BYTES), sample_rate=16_000)
    chunk = score_pb2.DenoiseChunk(speech=[media_pb2.SpeakerSpeech(speech=speech)])
    message = storage_pb2.LogEntry(chunk=chunk, latents=latents.to_proto()).SerializeToString()
    grants = [await leases.open(storage_pb2.SessionRecord(tenant="t")) for _ in range(8)]
    for grant in grants:
        await leases.write(grant, KEEP, 0, [message] * KEEP)

    def write(number: int) -> Awaitable[Any]:
        return leases.write(grants[number % 8], KEEP, KEEP + number // 8, [message])

    async def take(number: int) -> None:
        grants[number % 8] = await leases.resume(grants[number % 8].token, tenant="t")

    return {
        "lease.write": await bench.of(write, times=400),
        "lease.take": await bench.of(take, times=24),
    }


async def _of_admission(
    bench: _Bench, store: Store, metrics: GatewayMetrics, sessions: int, waiting: int
) -> Result:
    admission = Admission(store, Capacity(sessions=sessions, queue=waiting + 10), metrics=metrics)
    for number in range(sessions):
        await admission.renew(f"session-{number}", _CALLER)
    orders = {}
    for number in range(waiting):
        _, orders[number] = await admission.enter(f"waits-{number}", _CALLER, 10**6, "")
    ask = lambda number: admission.enter(
        f"waits-{number % waiting}", _CALLER, 10**6, orders[number % waiting]
    )
    renew = lambda number: admission.renew(f"session-{number % sessions}", _CALLER)
    return {"admission.enter": await bench.of(ask), "admission.renew": await bench.of(renew)}


async def _of_replicas(
    bench: _Bench, store: Store, metrics: GatewayMetrics, counts: tuple[int, ...]
) -> Result:
    found = {}
    for count in counts:
        known = Replicas(store, most=0, metrics=metrics)
        for number in range(count):
            known.seen(Engine.SCORE, Replica(f"score-{number}", 2))
        await known._write()

        async def hear(number: int, count: int = count, known: Replicas = known) -> None:
            known.seen(Engine.SCORE, Replica(f"score-{number % count}", 2))
            await known._write()

        found[f"replicas.seen of {count}"] = await bench.of(hear, times=100)
    return found


def run(**options: Any) -> Result:
    return asyncio.run(costs(**options))
