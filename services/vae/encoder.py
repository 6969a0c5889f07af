"""From frames to latents: the mirror of the decoder. Original parameter names."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from services.vae.config import VaeConfig
from services.vae.decoder import Head, middle
from services.vae.layers import CausalConv, Downsample, Gather, ResidualBlock, number_slots
from services.vae.state import History, State


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        tower, groups = config.encoder, config.norm_groups
        inner = tower.widths[-1]
        self.patch = config.patch
        self.conv1 = CausalConv(3 * config.patch**2, tower.widths[0], taps=tower.taps[0])
        self.downsamples = nn.ModuleList(_stages(config))
        self.middle = middle(
            inner, taps=tower.middle_taps, attention=tower.attention, groups=groups
        )
        # A mean and a log-variance for each latent channel, or what a fold makes them of.
        self.head = Head(inner, 2 * config.frame_channels, taps=tower.middle_taps, groups=groups)
        self.gather = Gather(config.fold.frames) if config.fold else None
        number_slots(self)

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """[B, 2Z, T, h, w] of frames [B, 3, F, H, W] in -1..1, and the state after.

        With a fold, channels are those of a latent's frames one after the other. F is a multiple
        of `frames_per_latent`, plus 1 for the first frame of a stream.
        """
        history = History(state)
        x = fold(frames, self.patch)
        for layer in (self.conv1, *self.downsamples, *self.middle.values(), self.head):
            x = layer(x, history)
        if self.gather is not None:
            x = self.gather(x, history)
        return x, history.state()


def _stages(config: VaeConfig) -> list[nn.Module]:
    tower = config.encoder
    layers: list[nn.Module] = []
    channels = tower.widths[0]
    for stage, (width, taps) in enumerate(zip(tower.widths, tower.taps, strict=True)):
        for _ in range(tower.blocks):
            layers.append(ResidualBlock(channels, width, taps=taps, groups=config.norm_groups))
            channels = width
        if stage < len(tower.temporal):
            layers.append(Downsample(width, temporal=tower.temporal[stage]))
    return layers


def fold(x: Tensor, patch: int) -> Tensor:
    """Gather squares of `patch` x `patch` pixels into channels, ordered as in Wan2.2."""
    return rearrange(x, "b c t (h q) (w r) -> b (c r q) t h w", q=patch, r=patch)
