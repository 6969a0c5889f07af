"""Text to speech, whoever does it: clauses in, samples out, each with the pause that follows it.

On the path: clauses → **voice** → conversation.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_QUIET = 0.01  # of full scale: below is silence
_LEAD_SECONDS = 0.03  # of silence kept before the first sound
_TAIL_SECONDS = 0.06
_PAUSES = {".": 0.28, "!": 0.28, "?": 0.28, ",": 0.12, "…": 0.35, "—": 0.15}  # after a clause


class Voice(Protocol):
    """Speaks with the voices that it has."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def rate(self) -> int:
        """Of the samples, Hz."""

    async def speak(self, text: str, voice: str) -> bytes:
        """A clause as 16-bit samples; b"" for no words. An unknown voice is the default one.

        Raises:
            TalkingMachinesError: it cannot be spoken now.
        """


def cut(sound: NDArray[np.float32], rate: int, text: str) -> bytes:
    """`sound`, -1 to 1, as samples, with the pause that `text` asks for instead of its own."""
    loud = np.flatnonzero(np.abs(sound) > _QUIET)
    if not len(loud):
        return b""
    first = max(0, loud[0] - round(_LEAD_SECONDS * rate))
    spoken = sound[first : loud[-1] + round(_TAIL_SECONDS * rate)]
    pause = np.zeros(round(_PAUSES.get(text.rstrip()[-1:], 0.0) * rate), np.float32)
    whole = np.clip(np.concatenate([spoken, pause]), -1, 1)
    samples: NDArray[np.int16] = (whole * 32767).astype("<i2")
    return samples.tobytes()
