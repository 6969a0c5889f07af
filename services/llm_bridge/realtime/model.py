"""A Realtime server as a speech model: a connection for each conversation.

Beside the path: bridge → **model** → dialogue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import aiohttp

from services.llm_bridge.persona import Persona
from services.llm_bridge.realtime.dialogue import RealtimeDialogue
from services.llm_bridge.realtime.protocol import RATE
from services.llm_bridge.settings import Realtime
from services.llm_bridge.speech_model import Dialogue, Past
from services.runtime.metrics import BridgeMetrics


class RealtimeModel:
    """A `SpeechModel`."""

    def __init__(
        self, settings: Realtime, http: aiohttp.ClientSession, metrics: BridgeMetrics
    ) -> None:
        self.name = settings.model or urlsplit(settings.url).hostname or "realtime"
        self.sample_rate = RATE
        self._settings = settings
        self._http = http
        self._metrics = metrics

    @asynccontextmanager
    async def dialogue(self, persona: Persona, history: Sequence[Past]) -> AsyncIterator[Dialogue]:
        dialogue = RealtimeDialogue(self._http, self._settings, persona, history, self._metrics)
        running = asyncio.create_task(dialogue.run())
        try:
            yield dialogue
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    def wrong(self) -> str | None:
        """Nothing: without its server a conversation is held all the same, and told so."""
        return None


@asynccontextmanager
async def realtime_model(
    settings: Realtime, metrics: BridgeMetrics
) -> AsyncIterator[RealtimeModel]:
    async with aiohttp.ClientSession() as http:
        yield RealtimeModel(settings, http, metrics)
