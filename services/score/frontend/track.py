"""One speaker's speech in one session, as the embeddings that the transformer's adapter hears.

Last station of the front end: pcm → front end → **track** → `Dit.hear`. Brings the stream's sample
rate to the front end's, and the front end's features to the stream's grid of embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.score.frontend.features import FrontEnd
from services.score.frontend.grid import EmbeddingGrid, rounded_up
from services.score.frontend.pcm import Pcm16, Resampler, samples_of


class SpeechTrack:
    """Hears PCM in pieces of any size and says what each chunk hears.

    Entered at the start of a call, or anywhere with `grid.history_samples` of the past before the
    chunk that comes next; both give the same embeddings. Holds what the last chunk asked for and
    what follows it, so its memory is bounded when chunks are asked for in order.
    """

    def __init__(self, front_end: FrontEnd, grid: EmbeddingGrid, *, at: int = 0) -> None:
        """Begin to listen at sample `at` of the stream; 0 is the start of the call."""
        assert front_end.config == grid.front_end
        self._front_end = front_end
        self._grid = grid
        self._resampler = Resampler(grid.rates)
        step = grid.rates.step
        # Before a call there is silence, and its first chunk hears some of it.
        silence = rounded_up(grid.history_samples, step) if at == 0 else 0
        start = rounded_up(at, step) - silence
        self._skip = start + silence - at  # samples before the two rates' grids meet
        # What the resampler says first was made without the past it should have had.
        self._unsettled = self._at_front_end(grid.rates.history)
        self._state = front_end.start(self._at_front_end(start) + self._unsettled)
        self._first = self._state.feature
        self._features = torch.zeros(0, *front_end.feature_shape)
        self.hear(torch.zeros(silence, dtype=torch.int16).numpy())

    def hear(self, pcm: Pcm16) -> None:
        """Hear the next samples at the stream's rate, from `pcm16`."""
        skipped = min(self._skip, len(pcm))
        self._skip -= skipped
        heard = self._resampler.push(pcm[skipped:])
        settled = min(self._unsettled, len(heard))
        self._unsettled -= settled
        features, self._state = self._front_end.push(samples_of(heard[settled:]), self._state)
        self._features = torch.cat([self._features.to(features), features[0]])

    def knows(self, chunk: int) -> bool:
        """Whether all that `chunk` hears has been heard."""
        index, mixed = self._grid.feature(self._grid.heard(chunk)[-1])
        return index + (mixed > 0) < self._first + len(self._features)

    def embeddings(self, chunk: int) -> Tensor:
        """What `chunk` hears: [before + per_chunk + after, E] float32; layers lie side by side.

        Forgets what only chunks before it would hear. `chunk` must be known, and must not be
        before the last one asked for.
        """
        assert self.knows(chunk), f"chunk {chunk} hears speech that has not come yet"
        heard = self._grid.heard(chunk)
        self._forget(self._grid.feature(heard[0])[0])
        features, device = self._features.flatten(1), self._features.device
        places, mixed = zip(*(self._grid.feature(embedding) for embedding in heard), strict=True)
        left = torch.tensor(places, device=device) - self._first
        # Where nothing of the next feature is mixed in, it need not be there.
        right = (left + 1).clamp(max=len(features) - 1)
        weights = torch.tensor(mixed, device=device)[:, None]
        return torch.lerp(features[left], features[right], weights)

    def _forget(self, before: int) -> None:
        assert before >= self._first, "speech that is asked for was forgotten, or never known"
        self._features = self._features[before - self._first :].clone()
        self._first = before

    def _at_front_end(self, samples: int) -> int:
        """Whole steps of the resampler, as samples at the front end's rate."""
        return samples * self._grid.rates.target // self._grid.rates.source
