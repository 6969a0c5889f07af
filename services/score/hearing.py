"""One speaker's speech, chunk by chunk, as embeddings and as who is heard.

On the path of a chunk: PCM → front end → **hearing** → `Dit.hear`. What a chunk hears is a function
of the samples around it: `history_samples` before, its own and the look-ahead sent with it. A
`SpeechTrack` that runs on from the last chunk is how that function is computed cheaply, nothing
more: where the new chunk is not what the look-ahead promised, the track is begun anew.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.score.contract import Mode, Pcm16, Speech
from services.score.frontend.features import FrontEnd
from services.score.frontend.grid import EmbeddingGrid
from services.score.frontend.track import SpeechTrack
from talkingmachines.spec import StreamSpec

T = TypeVar("T", bound=np.generic)


class Ear:
    """Hears the chunks of one speaker in order."""

    def __init__(self, front_end: FrontEnd, grid: EmbeddingGrid, spec: StreamSpec) -> None:
        self._front_end, self._grid, self._spec = front_end, grid, spec
        self._past = np.zeros(0, np.int16)  # the last samples before the next chunk
        self._modes = np.zeros(grid.before, np.bool_)  # who was heard in the embeddings before it
        self._track: SpeechTrack | None = None
        self._promised = np.zeros(0, np.int16)  # heard by the track beyond `_past`

    def remember(self, speech: Speech) -> None:
        """Take a finished chunk into the past without asking for its embeddings."""
        pcm = audible(speech)
        self._track = None
        self._advance(pcm, speech.mode)

    def hear(self, chunk: int, speech: Speech) -> tuple[Tensor, Tensor]:
        """What `chunk` hears: embeddings [T, E] float32 and which of them are heard [T] bool."""
        pcm = audible(speech)
        track = self._track
        kept = len(self._promised)
        if track is None or not np.array_equal(self._promised, pcm[:kept]):
            track, kept = self._begin(chunk), 0
        track.hear(pcm[kept:])
        embeddings = track.embeddings(chunk)
        speaking = speech.mode is Mode.SPEAKING
        now = np.full(self._grid.per_chunk + self._grid.after, speaking)
        heard = torch.from_numpy(np.concatenate([self._modes, now]))
        self._track = track
        self._advance(pcm, speech.mode)
        return embeddings, heard

    def _begin(self, chunk: int) -> SpeechTrack:
        at = self._spec.first_sample(chunk) - len(self._past)
        track = SpeechTrack(self._front_end, self._grid, at=at)
        track.hear(self._past)
        return track

    def _advance(self, pcm: Pcm16, mode: Mode) -> None:
        own = self._spec.samples_per_chunk
        self._promised = pcm[own:]
        self._past = _last(np.concatenate([self._past, pcm[:own]]), self._grid.history_samples)
        new = np.full(self._grid.per_chunk, mode is Mode.SPEAKING)
        self._modes = _last(np.concatenate([self._modes, new]), self._grid.before)


def audible(speech: Speech) -> Pcm16:
    """What of a speaker's samples may reach the model: a listener is silent."""
    return speech.pcm if speech.mode is Mode.SPEAKING else np.zeros_like(speech.pcm)


def _last(values: NDArray[T], count: int) -> NDArray[T]:
    return values[max(0, len(values) - count) :]
