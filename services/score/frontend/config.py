"""What a front end is made of, and the reach in time that follows from it.

Part of the checkpoint's configuration (`services.score.config`). No tensors here: the stream's
look-ahead and the length of the log's tail are known before any weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from services.runtime import ranges
from services.runtime.ranges import Range
from services.runtime.strict_json import Misfit

W2V_STRIDE = 320  # samples between frames of wav2vec 2.0: 50 per second at 16 kHz
W2V_OVERHANG = 80  # its frames see 400 samples: 80 beyond their stride

# As in `services.score.config`: beyond anything of use, and small enough to be laid out at once.
Samples = Annotated[int, Range(1, 1 << 16)]
Frequency = Annotated[float, Range(1, 192_000)]  # Hz
Count = Annotated[int, Range(1, 4096)]
Few = Annotated[int, Range(1, 64)]
Frames = Annotated[int, Range(0, 3000)]  # of 20 ms: a minute
_CONVOLUTIONS = 64


@dataclass(frozen=True, slots=True)
class MelConfig:
    """A log-mel spectrum whose frames end where their hop ends."""

    sample_rate: Annotated[int, Range(1_000, 384_000)] = 16_000  # Hz
    hop: Samples = 160  # samples: 100 frames per second
    window: Samples = 400  # samples, 25 ms
    fft: Annotated[int, Range(1, 1 << 14)] = 512  # points
    bands: Annotated[int, Range(1, 1024)] = 80
    low: Frequency = 50.0  # Hz, lower edge of the first band
    high: Frequency = 7_600.0  # Hz, upper edge of the last band

    def __post_init__(self) -> None:
        ranges.check(self, "mel")
        if not self.hop <= self.window <= self.fft:
            sizes = f"hop {self.hop}, window {self.window}, fft {self.fft}"
            raise Misfit("mel.window", got=sizes, expected="hop <= window <= fft")
        if not self.low < self.high <= self.sample_rate / 2:
            edges = f"{self.low:g} to {self.high:g} Hz at {self.sample_rate} Hz"
            raise Misfit("mel.high", got=edges, expected="low < high <= half the sample rate")

    @property
    def history(self) -> int:
        """Samples before a frame's own hop that its window covers."""
        return self.window - self.hop


@dataclass(frozen=True, slots=True)
class MelFrontEnd:
    """Log-mel, then a small causal convolution stack that also predicts mouth controls."""

    kind: Literal["mel"] = "mel"
    mel: MelConfig = field(default_factory=MelConfig)
    width: Count = 128
    kernel: Few = 5  # mel frames
    dilations: tuple[Count, ...] = (1, 2, 4, 8)  # one convolution each
    stride: Few = 4  # mel frames per feature: 25 features per second
    lookahead: Annotated[int, Range(0, 1000)] = 2  # features: 80 ms
    controls: tuple[str, ...] = ("open", "spread", "round", "press", "teeth", "tongue")

    def __post_init__(self) -> None:
        ranges.check(self, "front_end")
        if not 1 <= len(self.dilations) <= _CONVOLUTIONS:
            got, expected = f"{len(self.dilations)} of them", f"1 to {_CONVOLUTIONS}"
            raise Misfit("front_end.dilations", got=got, expected=expected)

    @property
    def sample_rate(self) -> int:
        return self.mel.sample_rate

    @property
    def hop(self) -> int:
        """Samples per feature."""
        return self.mel.hop * self.stride

    @property
    def history_samples(self) -> int:
        """Samples before a feature's own that shape it."""
        # A feature is read at the last mel frame of the last hop that it waits for.
        ahead = self.stride * (self.lookahead + 1) - 1
        reach = (self.kernel - 1) * sum(self.dilations)
        return max(0, (reach - ahead) * self.mel.hop + self.mel.history)

    @property
    def lookahead_samples(self) -> int:
        """Samples after a feature's own that must be heard before it comes out."""
        return self.lookahead * self.hop

    @property
    def inputs(self) -> tuple[int, ...]:
        """Input channels of each convolution."""
        return (self.mel.bands, *[self.width] * (len(self.dilations) - 1))

    @property
    def outputs(self) -> int:
        """Numbers per feature: hidden ones, then controls."""
        return self.width + len(self.controls)


@dataclass(frozen=True, slots=True)
class Wav2Vec2FrontEnd:
    """Hidden states of a wav2vec 2.0 network, which hears blocks in windows.

    `states`: the last hidden state (FantasyTalking); the transformer's layers side by side
    (MultiTalk); or these and, before them, what the first layer reads (Wan2.2-S2V).

    The default window compromises. Against hearing a whole clip at once, relative to how much the
    last state varies over time, the error with random weights at wav2vec2-base size was 0.58, 0.46
    and 0.39 with 1, 2 and 3 s on the left and 0.2 s on the right; 0.49 and 0.39 with 2 s on the
    left and 0 or 0.5 s on the right (`benchmarks/wav2vec_window.py`). Random weights attend
    everywhere alike, the worst case; trained ones were not at hand.
    """

    kind: Literal["wav2vec2"] = "wav2vec2"
    states: Literal["last", "transformer", "all"] = "transformer"
    every: Few = 1  # 2: every other frame enters the transformer, 25 per second (MultiTalk)
    block: Few = 4  # features that share a window
    left: Frames = 100  # frames of 20 ms heard before a block
    right: Frames = 10  # frames of 20 ms heard after a block

    def __post_init__(self) -> None:
        ranges.check(self, "front_end")
        if self.left % self.every:
            expected = f"a multiple of every ({self.every})"
            raise Misfit("front_end.left", got=self.left, expected=expected)

    @property
    def sample_rate(self) -> int:
        return 16_000

    @property
    def hop(self) -> int:
        """Samples per feature."""
        return W2V_STRIDE * self.every

    @property
    def left_samples(self) -> int:
        """Samples before a block in its window."""
        return self.left * W2V_STRIDE

    @property
    def right_samples(self) -> int:
        """Samples after a block in its window."""
        return self.right * W2V_STRIDE + W2V_OVERHANG

    @property
    def history_samples(self) -> int:
        """Samples before a feature's own that shape it, at most."""
        return self.left_samples + (self.block - 1) * self.hop

    @property
    def lookahead_samples(self) -> int:
        """Samples after a feature's own that must be heard before it comes out, at most."""
        return self.right_samples + (self.block - 1) * self.hop
