"""Text to speech: CMU Flite, a program of the system (permissive licence; Debian: `flite`).

On the path: clauses → **flite** → conversation. Clear and a little buzzy, at a hundredth of a core:
for machines whose cores are busy drawing.
"""

from __future__ import annotations

import asyncio
import io
import wave

import numpy as np

from services.llm_bridge.local.voice import cut
from talkingmachines.errors import EngineFailure, TimedOut

RATE = 16_000  # Hz
VOICES = ("slt", "rms", "awb", "kal16")
_SECONDS = 10.0  # for a clause
_LOUDER = 1.6  # its voices are quiet


class Flite:
    """A `Voice`."""

    name = "Flite"
    rate = RATE

    async def speak(self, text: str, voice: str) -> bytes:
        known = voice if voice in VOICES else VOICES[0]
        printable = "".join(character for character in text if character.isprintable())
        if not any(character.isalnum() for character in printable):
            return b""
        command = ("flite", "-voice", known, "-t", printable, "-o", "/dev/stdout")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(_SECONDS):
                sound, _ = await process.communicate()
        except TimeoutError:
            raise TimedOut("speaking a clause", limit=_SECONDS) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise EngineFailure(f"flite ended with {process.returncode}")
        with wave.open(io.BytesIO(sound)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return cut(samples.astype(np.float32) * np.float32(_LOUDER / 32768), RATE, text)
