"""What a front end is: a streaming function from samples to features on a fixed grid.

Feature n belongs to samples [n·hop, (n+1)·hop) of the stream, counted from the call's first sample.
It is a pure function of the samples [n·hop - history, (n+1)·hop + lookahead), whose numbers are the
config's; before sample 0 there is silence. So a stream can be entered anywhere with `history`
samples of its past, and gives from there on what it would have given, heard from the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.score.frontend.config import MelFrontEnd, Wav2Vec2FrontEnd

FrontEndConfig = MelFrontEnd | Wav2Vec2FrontEnd


@dataclass(frozen=True, slots=True)
class AudioState:
    """Where a stream of samples stands, between two pieces. Never changed, only replaced."""

    sample: int  # the next sample to be heard
    feature: int  # the next feature to come out
    carry: tuple[Tensor, ...]  # what the front end keeps of the past


class FrontEnd(Protocol):
    """Samples in, features out. B streams move together; a session is one."""

    @property
    def config(self) -> FrontEndConfig: ...

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of one feature: (width,), or (layers, width)."""
        ...

    def start(self, at: int, *, streams: int = 1) -> AudioState:
        """Begin to listen at sample `at` (may be negative), knowing nothing of the past.

        The first feature to come out is the first whose history lies wholly after `at`.
        """
        ...

    def push(self, samples: Tensor, state: AudioState) -> tuple[Tensor, AudioState]:
        """Hear float32 samples [B, N] in [-1, 1), N any number.

        Returns:
            The features that became known, [B, n, *feature_shape] float32, the first of them
            number `state.feature`; n may be 0. And the state for the next piece.

        Raises:
            BadInput: samples of another dtype or rank, or not finite.
        """
        ...


def first_feature(at: int, *, history: int, hop: int) -> int:
    """The first feature whose history begins at sample `at` or later."""
    return -(-(at + history) // hop)


def begin(front_end: FrontEnd, *, streams: int = 1) -> AudioState:
    """Listen from the start of a call: sample 0 is next, all before it was silence."""
    history = front_end.config.history_samples
    state = front_end.start(-history, streams=streams)
    _, state = front_end.push(torch.zeros(streams, history), state)
    assert (state.sample, state.feature) == (0, 0)
    return state


def whole_clip(front_end: FrontEnd, samples: Tensor) -> Tensor:
    """All features of a clip [B, N] between silences: [B, N // hop, *feature_shape]."""
    state = begin(front_end, streams=samples.shape[0])
    clip = torch.nn.functional.pad(samples, (0, front_end.config.lookahead_samples))
    features, _ = front_end.push(clip, state)
    return features[:, : samples.shape[1] // front_end.config.hop]
