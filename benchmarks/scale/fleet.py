"""Gateways of the product in one process, their engines and their Redis; zones that can be lost."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from benchmarks.scale.engines import (
    SCORE_CHECKPOINT,
    VAE_CHECKPOINT,
    WORK,
    Channel,
    Pool,
    Replica,
)
from benchmarks.scale.store import Costs, SimulatedClient, SimulatedRedis, real_redis
from services.gateway.admission import Admission, Capacity
from services.gateway.attaching import Patience
from services.gateway.auth import Caller
from services.gateway.avatars import Avatars
from services.gateway.blobs import Blobs
from services.gateway.calls import Calls
from services.gateway.engines import Engines
from services.gateway.index import Index
from services.gateway.lease import Leases
from services.gateway.limits import CallerLimits
from services.gateway.opening import Workshop
from services.gateway.outbox import Room
from services.gateway.pacer import Lead
from services.gateway.replicas import Replicas
from services.gateway.store import Store
from services.runtime.attachments import Terms
from services.runtime.drain import Drain
from services.runtime.metrics import Engine, EngineMetrics, GatewayMetrics
from services.runtime.settings import Telemetry
from services.runtime.tracing import Tracing
from talkingmachines.media import DataType, Tensor
from talkingmachines.v1 import avatar_pb2, score_pb2, storage_pb2

if TYPE_CHECKING:
    from benchmarks.scale.callers import Connection

ZONES = 3
TENANT, AVATAR = "tenant", "ada"
CONDITIONING_BYTES = 64  # what is read from the blob store; its real size matters to nobody here


@dataclass(frozen=True, slots=True)
class Size:
    """What the fleet is made of."""

    gateways: int
    score: int  # replicas
    vae: int
    capacity: int = 0  # sessions, by the operator's word; 0: what the replicas say
    queue: int = 1_000

    @classmethod
    def for_sessions(cls, sessions: int, *, busy: float, per_gateway: int = 40) -> Size:
        """Room for `sessions` with the engines' slots `busy` of 1 taken."""
        slots = sessions / busy
        return cls(
            gateways=max(ZONES, -(-sessions // per_gateway)),
            score=max(ZONES, round(slots / WORK[Engine.SCORE].slots)),
            vae=max(ZONES, round(slots / WORK[Engine.VAE].slots)),
        )


class Gateway:
    """One gateway: everything that `services.gateway.gateway` puts together, but no port."""

    def __init__(self, fleet: Fleet, zone: int) -> None:
        self.zone = zone
        self.client = SimulatedClient(fleet.redis)
        self.channels = [Channel(fleet.score), Channel(fleet.vae)]
        self.metrics = metrics = GatewayMetrics(CollectorRegistry())
        self.drain = Drain(60.0)
        self.room = Room()
        self.connections: set[Connection] = set()
        self.up = True
        store = Store(self.client, metrics)  # type: ignore[arg-type]
        replicas = Replicas(store, most=fleet.size.capacity, metrics=metrics)
        channels: list[Any] = list(self.channels)
        engines = Engines(*channels, seen=replicas.seen)
        leases = Leases(store, owner=secrets.token_hex(8), window=30.0, metrics=metrics)
        capacity = Capacity(sessions=fleet.size.capacity, queue=fleet.size.queue)
        self.admission = Admission(store, capacity, metrics=metrics)
        self.index = Index(store)
        self.calls = Calls(
            avatars=Avatars(engines, fleet.blobs, self.index, metrics=metrics),
            leases=leases,
            admission=self.admission,
            workshop=Workshop(
                engines, replicas, leases, Lead(), fleet.patience, metrics, fleet.tracing
            ),
            drain=self.drain,
            metrics=metrics,
            conversation=None,
        )
        self._beside = [
            asyncio.create_task(engines.watch()),
            asyncio.create_task(replicas.write()),
        ]

    def stop(self) -> None:
        for task in self._beside:
            task.cancel()

    def kill(self, *, silent: bool) -> None:
        """End it, without a word to anybody if `silent`."""
        self.up = False
        self.client.cut = True
        for channel in self.channels:
            channel.silent = silent
        self.stop()
        for connection in list(self.connections):
            connection.lose(silent=silent)


@dataclass
class Fleet:
    """What is up, and what was counted of it."""

    size: Size
    redis: SimulatedRedis
    blobs: Blobs
    terms: Terms
    patience: Patience
    tracing: Tracing
    score: Pool
    vae: Pool
    gateways: list[Gateway] = field(default_factory=list)  # that new calls are sent to
    gone: list[Gateway] = field(default_factory=list)
    limits: CallerLimits = field(default_factory=lambda: CallerLimits(sessions=1_000_000))
    engine_registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _named: int = 0

    def __post_init__(self) -> None:
        self._engine_metrics = EngineMetrics(self.engine_registry)

    @property
    def caller(self) -> Caller:
        return Caller(TENANT, "app", self.limits)

    @property
    def replicas(self) -> list[Replica]:
        return [*self.score.replicas, *self.vae.replicas]

    def pick(self) -> Gateway:
        """As a load balancer does that knows nothing of sessions."""
        return random.choice(self.gateways)

    async def add_replica(self, engine: Engine, zone: int) -> Replica:
        self._named += 1
        made = Replica(engine, f"{engine}-{self._named}", zone, self.terms, self._engine_metrics)
        await made.start()
        (self.score if engine is Engine.SCORE else self.vae).replicas.append(made)
        return made

    def add_gateway(self, zone: int) -> Gateway:
        gateway = Gateway(self, zone)
        self.gateways.append(gateway)
        return gateway

    async def lose_zone(self, zone: int, *, silent: bool, notice_seconds: float) -> None:
        """End all that is in a zone; ingress and load balancer notice later if nobody tells."""
        gateways = [gateway for gateway in self.gateways if gateway.zone == zone]
        replicas = [replica for replica in self.replicas if replica.zone == zone]
        for gateway in gateways:
            gateway.kill(silent=silent)
        for replica in replicas:
            replica.kill(silent=silent)
        if silent:
            await asyncio.sleep(notice_seconds)
        self.gateways = [gateway for gateway in self.gateways if gateway.up]
        self.gone += gateways
        for pool in (self.score, self.vae):
            pool.replicas = [replica for replica in pool.replicas if not replica.silent]

    def total(self, of: Callable[[GatewayMetrics], Counter | Histogram], **labels: str) -> float:
        """How often something was counted, by all gateways that ever were."""
        return sum(
            sample.value
            for gateway in [*self.gateways, *self.gone]
            for family in of(gateway.metrics).collect()
            for sample in family.samples
            if sample.name.endswith(("_total", "_count"))
            and labels.items() <= sample.labels.items()
        )


@asynccontextmanager
async def fleet(
    size: Size,
    *,
    costs: Costs | None = None,
    terms: Terms | None = None,
    patience: Patience | None = None,
) -> AsyncIterator[Fleet]:
    """A fleet that is up, with one character."""
    with real_redis() as real:
        made = Fleet(
            size=size,
            redis=SimulatedRedis(real, costs or Costs()),
            blobs=Blobs("memory://scale"),
            terms=terms or Terms(),
            patience=patience or Patience(),
            tracing=Tracing("gateway", Telemetry()),
            score=Pool(Engine.SCORE, proxies=max(1, size.score // 8)),
            vae=Pool(Engine.VAE, proxies=max(1, size.vae // 8)),
        )
        for engine, count in ((Engine.SCORE, size.score), (Engine.VAE, size.vae)):
            for number in range(count):
                await made.add_replica(engine, number % ZONES)
        for number in range(size.gateways):
            made.add_gateway(number % ZONES)
        await _character(made)
        try:
            yield made
        finally:
            await _end(made)


async def _end(fleet: Fleet) -> None:
    """Nothing is left running, and nothing more is asked of Redis."""
    fleet.redis.close()
    for gateway in fleet.gateways:
        gateway.client.cut = True
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest, timeout=60.0)


async def _character(fleet: Fleet) -> None:
    anchor = Tensor(DataType.FLOAT32, (1, 1, 1, 1), bytes(4)).to_proto()
    looks = score_pb2.Conditioning(checkpoint=SCORE_CHECKPOINT, anchor=anchor)
    blob = await fleet.blobs.put(TENANT, "conditionings", looks.SerializeToString())
    record = storage_pb2.AvatarRecord(
        avatar=avatar_pb2.Avatar(avatar_id=AVATAR, speakers=[avatar_pb2.Speaker()]),
        conditioning=blob,
        score_checkpoint=SCORE_CHECKPOINT,
        vae_checkpoint=VAE_CHECKPOINT,
    )
    await fleet.gateways[0].index.add(TENANT, record, once="", most=1)
