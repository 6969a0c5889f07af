"""Ears, recogniser and voice of a local dialogue whose results are known beforehand.

They take time on the loop's clock and none of the machine's, so conversations run in virtual time.
Speech of the fake voice says what it says: every character is 50 ms of its code as sample value.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from services.llm_bridge.local.dialogue import LocalDialogue, Parts
from services.llm_bridge.local.voice import Voice as AnyVoice
from services.llm_bridge.local.writer import Writer
from services.llm_bridge.persona import Persona
from services.llm_bridge.speech_model import Cue, Dialogue, Line, Party, Past
from services.runtime.metrics import BridgeMetrics

RATE = 24_000
CHARACTER_SAMPLES = RATE // 20
_LOUD = 500


def judge(frame: bytes) -> float:
    """Voice is what is loud."""
    return float(np.abs(np.frombuffer(frame, "<i2").astype(int)).mean() > _LOUD)


def text_of(speech: bytes) -> str:
    """What the fake voice said in 16-bit samples, as far as whole characters go."""
    samples = np.frombuffer(speech, "<i2")[CHARACTER_SAMPLES // 2 :: CHARACTER_SAMPLES]
    return "".join(chr(code) for code in samples)


@dataclass
class Recogniser:
    """Hears `texts`, one after the other; then nothing."""

    texts: deque[str] = field(default_factory=deque)
    seconds: float = 0.3
    sounds: list[bytes] = field(default_factory=list)

    async def text(self, sound: bytes) -> str:
        self.sounds.append(sound)
        await asyncio.sleep(self.seconds)
        return self.texts.popleft() if self.texts else ""


@dataclass
class Echo:
    """Writes `answers`, one after the other; then what was said, back."""

    answers: deque[str] = field(default_factory=deque)
    name: str = "echo"
    seen: list[list[Line]] = field(default_factory=list)

    async def write(
        self, persona: Persona, history: Sequence[Line], cue: Cue
    ) -> AsyncIterator[str]:
        self.seen.append(list(history))
        said = [line.text for line in history if line.party is Party.USER]
        text = self.answers.popleft() if self.answers else said[-1] if said else "Hm."
        for word in text.split(" "):
            await asyncio.sleep(0.01)
            yield f"{word} "


@dataclass
class Voice:
    """Speaks in no time."""

    name: str = "fake"
    rate: int = RATE

    async def speak(self, text: str, voice: str) -> bytes:
        codes = np.array([ord(character) for character in f"{text} "], "<i2")
        return np.repeat(codes, CHARACTER_SAMPLES).tobytes()


@dataclass
class Tone:
    """As `Voice`, but to be heard: says everything as a tone, 50 ms a character."""

    name: str = "tone"
    rate: int = RATE

    async def speak(self, text: str, voice: str) -> bytes:
        time = np.arange(len(text) * CHARACTER_SAMPLES) / RATE
        return (9000 * np.sin(2 * np.pi * 440 * time)).astype("<i2").tobytes()


@dataclass
class Model:
    """A `SpeechModel` of these parts."""

    metrics: BridgeMetrics
    recogniser: Recogniser = field(default_factory=Recogniser)
    writer: Writer = field(default_factory=Echo)
    voice: AnyVoice = field(default_factory=Voice)
    name: str = "fake"
    sample_rate: int = RATE

    @asynccontextmanager
    async def dialogue(self, persona: Persona, history: Sequence[Past]) -> AsyncIterator[Dialogue]:
        parts = Parts(judge, self.recogniser, self.writer, self.voice, self.metrics)
        dialogue = LocalDialogue(persona, history, parts)
        try:
            yield dialogue
        finally:
            await dialogue.close()

    def wrong(self) -> str | None:
        return None
