"""The session store over a real Redis."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from services.gateway.store import Certificates, Store, connect
from services.runtime.metrics import GatewayMetrics
from tests.gateway.fleet import valkey


async def test_connections_that_died_while_nobody_used_them_cost_nobody_anything() -> None:
    with valkey() as server:
        url = f"redis://127.0.0.1:{server.port}"
        store = Store(connect(url, Certificates()), GatewayMetrics(CollectorRegistry()))
        other = Redis.from_url(url)
        try:
            for _ in range(2):
                # Several at once, so that the pool holds several connections.
                assert all(await asyncio.gather(*(store.do(lambda it: it.ping()) for _ in "abcd")))
                await other.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(0.05)
        finally:
            await store.close()
            await other.aclose()
