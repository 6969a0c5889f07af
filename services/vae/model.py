"""The causal 3-D VAE of Wan2.1, with its original parameter names.

Encoder and decoder with the 1 x 1 x 1 convolutions on the latent's side, and the normalisation of
latents. State goes in and comes out; nothing here remembers a stream.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from services.vae.config import VaeConfig
from services.vae.decoder import Decoder
from services.vae.encoder import Encoder
from services.vae.state import State


class Vae(nn.Module):
    """Shapes: frames [B, 3, F, H, W] in -1..1; latents [B, Z, T, h, w], normalised.

    The first latent of a stream is one frame, every other `frames_per_latent` frames. Splitting a
    stream anywhere between latents changes nothing: pass on the state.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels, per_latent = config.latent_channels, config.folded_frames * config.frame_channels
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv3d(2 * per_latent, 2 * channels, 1)
        self.conv2 = nn.Conv3d(channels, per_latent, 1)
        self.decoder = Decoder(config)
        self.set_normalisation(config)

    def set_normalisation(self, config: VaeConfig) -> None:
        """Take latent mean and deviation from `config`, which alone holds them; files do not."""
        for name, values in (("mean", config.latent_mean), ("std", config.latent_std)):
            column = torch.tensor(values).view(-1, 1, 1, 1)
            self.register_buffer(name, column, persistent=False)

    def posterior(self, frames: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Mean and log-variance of the raw latents (before normalisation), and the state after."""
        moments, state = self.encoder(frames, state)
        mean, log_variance = self.conv1(moments).chunk(2, dim=1)
        return mean, log_variance, state

    def encode(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """The most likely latents of `frames`, and the state after."""
        mean, _, state = self.posterior(frames, state)
        return self.normalise(mean), state

    def decode(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        """The frames of `latents`, not clamped, and the state after."""
        return cast(tuple[Tensor, State], self.decoder(self._raw(latents), state))

    def warm(self, latents: Tensor, state: State, *, following: int = 0) -> State:
        """The state after `latents`, for the part of the price that needs no frames.

        With latents `following` it is only a step towards the state after those: `Decoder.warm`.
        """
        return self.decoder.warm(self._raw(latents), state, following=following)

    @property
    def reach(self) -> int:
        """Latents of the past that a stream's future frames depend on; no older one matters."""
        return self.decoder.needs[0]

    def normalise(self, raw: Tensor) -> Tensor:
        return (raw - self.mean) / self.std

    def _raw(self, latents: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(latents * self.std + self.mean))
