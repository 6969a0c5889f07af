"""The shipped model's front end: log-mel, then a small stack of causal dilated convolutions.

It is trained to predict mouth controls from speech before any picture is drawn; both its hidden
features and the controls it predicts go to the transformer, standardised.

Legend: B streams, T mel frames, n features, M mel bands, H hidden width, K controls.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.score.frontend.config import MelFrontEnd
from services.score.frontend.features import AudioState, first_feature
from services.score.frontend.logmel import LogMel
from services.score.frontend.pcm import finite_samples


class SpeechEncoder(nn.Module):
    """A `FrontEnd`. Streamed features equal those of the whole clip, to float32 rounding."""

    offset: Tensor
    scale: Tensor

    def __init__(self, config: MelFrontEnd) -> None:
        super().__init__()
        self.config = config
        self.mel = LogMel(config.mel)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, config.width, config.kernel, dilation=dilation)
            for channels, dilation in zip(config.inputs, config.dilations, strict=True)
        )
        self.controls = nn.Linear(config.width, len(config.controls))
        # What standardises the features is part of the trained weights.
        self.register_buffer("offset", torch.zeros(self.feature_shape))
        self.register_buffer("scale", torch.ones(self.feature_shape))

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (self.config.outputs,)

    def forward(
        self, mel: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Read T mel frames, a multiple of the stride.

        Args:
            mel: [B, T, M].
            past: what each convolution saw last, [B, channels, (kernel - 1)·dilation] each;
                `no_past` where nothing was heard before.

        Returns:
            Hidden features [B, T/stride, H], predicted controls [B, T/stride, K], the new past.
            Number i belongs to feature i - lookahead.
        """
        x = mel.transpose(1, 2)
        kept = []
        for index, (convolution, before) in enumerate(zip(self.convolutions, past, strict=True)):
            seen = torch.cat([before, x], dim=-1)
            kept.append(seen[..., seen.shape[-1] - before.shape[-1] :])
            new = F.gelu(convolution(seen))
            x = new if index == 0 else x + new
        hidden = x[..., self.config.stride - 1 :: self.config.stride].transpose(1, 2)
        return hidden, self.controls(hidden), tuple(kept)

    def no_past(self, streams: int) -> tuple[Tensor, ...]:
        """The past of a stream that is entered without any."""
        reach = self.config.kernel - 1
        return tuple(
            self.offset.new_zeros(streams, channels, reach * dilation)
            for channels, dilation in zip(self.config.inputs, self.config.dilations, strict=True)
        )

    def start(self, at: int, *, streams: int = 1) -> AudioState:
        # Frames lie on a grid from sample 0. What is missing of the first hop is silence; no
        # feature that it shapes comes out.
        missing = at % self.config.hop
        samples = self.offset.new_zeros(streams, self.config.mel.history + missing)
        first = first_feature(at, history=self.config.history_samples, hop=self.config.hop)
        return AudioState(at, first, (samples, *self.no_past(streams)))

    def push(self, samples: Tensor, state: AudioState) -> tuple[Tensor, AudioState]:
        samples = finite_samples(samples, "samples").to(self.offset.device)
        waiting, *past = state.carry
        heard = torch.cat([waiting, samples], dim=1)
        before = self.config.mel.history
        hops = (heard.shape[1] - before) // self.config.hop
        sample = state.sample + samples.shape[1]
        if not hops:
            nothing = self.offset.new_zeros(samples.shape[0], 0, *self.feature_shape)
            return nothing, AudioState(sample, state.feature, (heard, *past))
        used = hops * self.config.hop
        hidden, controls, kept = self(self.mel(heard[:, : before + used]), tuple(past))
        features = (torch.cat([hidden, controls], dim=-1) - self.offset) * self.scale
        first_hop = (state.sample - waiting.shape[1] + before) // self.config.hop
        early = max(0, state.feature - (first_hop - self.config.lookahead))
        features = features[:, early:]
        carry = (heard[:, used:].clone(), *kept)
        return features, AudioState(sample, state.feature + features.shape[1], carry)
