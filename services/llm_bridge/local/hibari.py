"""Text to speech: Hibari (Apache-2.0), a small student of Kokoro-82M, on its own thread.

On the path: clauses → **hibari** → conversation. One American voice is in the package; the others
here are that one, spoken at another pace and played back at the inverse: pitch and timbre move,
tempo does not. The package can download more voices; it is never asked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from services.llm_bridge.local.voice import cut
from services.runtime.device import DeviceThread
from services.runtime.resample import Resampler
from talkingmachines.media import Pcm

RATE = 24_000  # Hz
VOICES: Mapping[str, float] = {"heart": 1.0, "wren": 1.12, "heron": 0.85, "bittern": 0.76}  # pitch
DEFAULT_VOICE = "heart"


class Hibari:
    """All voices of a process; one clause at a time. A `Voice`."""

    name = "Hibari"
    rate = RATE

    def __init__(self, speaker: Any, thread: DeviceThread) -> None:
        self._speaker = speaker
        self._thread = thread

    async def speak(self, text: str, voice: str) -> bytes:
        """A clause as 16-bit samples at `RATE`, with the pause that follows it; b"" for no words.

        An unknown voice is the default one.

        Raises:
            NoCapacity: too many clauses wait.
        """
        if not any(character.isalnum() for character in text):
            return b""
        return await self._thread.run(self._speak, text, voice)

    def _speak(self, text: str, voice: str) -> bytes:
        pitch = VOICES.get(voice, VOICES[DEFAULT_VOICE])
        sound = np.asarray(self._speaker(text, speed=1 / pitch, seed=0), np.float32)
        rate = round(RATE * pitch)
        spoken = cut(sound, rate, text)
        resampler = Resampler(rate, RATE)
        return resampler.push(Pcm(spoken, rate)) + resampler.flush()


async def open_hibari(thread: DeviceThread, *, threads: int) -> Hibari:
    """Load the model and run it once, so that the first answer does not wait for that."""
    voice = await thread.run(_load, thread, threads)
    await voice.speak("Hello.", DEFAULT_VOICE)
    return voice


def _load(thread: DeviceThread, threads: int) -> Hibari:
    import hibari

    return Hibari(hibari.Hibari(threads=threads), thread)
