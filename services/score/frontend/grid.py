"""The two grids of time that meet in the front end: samples at two rates, features and embeddings.

Whole numbers alone, no tensors: how far a chunk reaches into the past and the future is known
before any weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from services.score.frontend.config import MelFrontEnd, Wav2Vec2FrontEnd

# Half the length of swresample's default filter, at the lower of the two rates, and one sample more
# on either grid because positions between samples round outwards.
_FILTER_REACH = 16 + 2


@dataclass(frozen=True, slots=True)
class Rates:
    """A change of sample rate, and what it reaches."""

    source: int  # Hz
    target: int  # Hz

    @property
    def step(self) -> int:
        """Source samples after which the two grids of samples meet again."""
        return self.source // gcd(self.source, self.target)

    @property
    def history(self) -> int:
        """Source samples before a moment that shape the result at that moment; whole `step`s."""
        return rounded_up(self.lookahead, self.step)

    @property
    def lookahead(self) -> int:
        """Source samples after a moment that shape the result at that moment."""
        if self.source == self.target:
            return 0
        return -(-_FILTER_REACH * self.source // min(self.source, self.target))


@dataclass(frozen=True, slots=True)
class EmbeddingGrid:
    """Which embeddings a chunk hears, and from which features they are made.

    Embedding e of the stream belongs to samples [e·step, (e+1)·step) at the stream's rate. Its
    value is the features' at the middle of that time, interpolated linearly between two of them,
    or the feature itself where the grids coincide. With `via`, features are first interpolated to
    that rate, and the one at or before the embedding's start is taken: feature n is at n·hop then.
    """

    sample_rate: int  # Hz, of the stream
    step: int  # samples from one embedding to the next
    per_chunk: int  # embeddings in the time of a chunk
    before: int  # embeddings before a chunk's own that it hears
    after: int  # embeddings after them
    front_end: MelFrontEnd | Wav2Vec2FrontEnd
    via: int = 0  # Hz; 0: straight from features to embeddings

    def heard(self, chunk: int) -> range:
        """The embeddings that `chunk` hears."""
        first = chunk * self.per_chunk
        return range(first - self.before, first + self.per_chunk + self.after)

    def feature(self, embedding: int) -> tuple[int, float]:
        """The feature at or before an embedding's middle, and how far the next one is mixed in."""
        if self.via:
            between = embedding * self.step * self.via // self.sample_rate
            period = self.via * self.front_end.hop
            index, rest = divmod(between * self.front_end.sample_rate, period)
            return index, rest / period
        own, other = self.step * self.front_end.sample_rate, self.front_end.hop * self.sample_rate
        # In whole numbers: a grid that coincides must not need a second feature by rounding.
        index, rest = divmod((2 * embedding + 1) * own - other, 2 * other)
        return index, rest / (2 * other)

    @property
    def rates(self) -> Rates:
        """From the stream's rate to the front end's."""
        return Rates(self.sample_rate, self.front_end.sample_rate)

    @property
    def coincides(self) -> bool:
        """Whether every embedding is exactly one feature."""
        if self.via:
            return False
        return self.step * self.front_end.sample_rate == self.front_end.hop * self.sample_rate

    @property
    def history_samples(self) -> int:
        """Samples of the stream before a chunk's start that shape what it hears."""
        reach = self._slack_before + self._own(self.front_end.history_samples)
        # Where a tail begins between two meetings of the rates' grids, the rest of a step is lost.
        resampling = self.rates.history + self.rates.step - 1
        return max(0, self.before * self.step + reach + resampling)

    @property
    def lookahead_samples(self) -> int:
        """Samples of the stream after a chunk's end that shape what it hears."""
        reach = self._slack_after + self._own(self.front_end.lookahead_samples)
        return max(0, self.after * self.step + reach + self.rates.lookahead)

    @property
    def _slack_before(self) -> int:
        """By how much the features of an embedding may begin before its own time."""
        if self.via:
            return -(-self.sample_rate // self.via) + self._own(self.front_end.hop)
        return self._slack

    @property
    def _slack_after(self) -> int:
        """By how much they may end after it; negative where they end before."""
        if self.via:
            return self._own(2 * self.front_end.hop) - self.step
        return self._slack

    @property
    def _slack(self) -> int:
        """By how much the features around an embedding's middle may reach beyond its own time."""
        if self.coincides:
            return 0
        return self._own(-(-3 * self.front_end.hop // 2)) - self.step // 2

    def _own(self, samples: int) -> int:
        """Samples at the front end's rate as samples of the stream, rounded up."""
        return -(-samples * self.sample_rate // self.front_end.sample_rate)


def rounded_up(samples: int, step: int) -> int:
    """The first multiple of `step` that is not below `samples`."""
    return -(-samples // step) * step
