"""From latents to frames, any number of latents at a time.

The diagram: (frames out of a folded latent →) conv → middle (block, attention, block) → stages of
blocks, each but the last followed by an upsampling → head. Original parameter names.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from services.vae.config import VaeConfig
from services.vae.layers import (
    Attention,
    CausalConv,
    Layer,
    Norm,
    ResidualBlock,
    Spread,
    Upsample,
    number_slots,
)
from services.vae.state import History, State


class Head(nn.ModuleDict):
    """Norm, SiLU, convolution: the last layer of both towers."""

    def __init__(self, channels: int, out: int, *, taps: int, groups: int) -> None:
        super().__init__({"0": Norm(channels, groups), "2": CausalConv(channels, out, taps=taps)})
        self.reach = taps - 1
        self.rate = 1

    def forward(self, x: Tensor, history: History) -> Tensor:
        return cast(Tensor, self["2"](F.silu(self["0"](x), inplace=True), history))


def middle(channels: int, *, taps: int, attention: bool, groups: int) -> nn.ModuleDict:
    """Block, attention (when there is one), block, numbered as in the original Sequential."""
    before, after = (ResidualBlock(channels, channels, taps=taps, groups=groups) for _ in range(2))
    layers: dict[str, nn.Module] = {"0": before}
    if attention:
        layers["1"] = Attention(channels, groups)
    return nn.ModuleDict({**layers, "2": after})


class Decoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        tower, groups = config.decoder, config.norm_groups
        inner = tower.widths[0]
        self.patch = config.patch
        self.spread = Spread(config.fold.frames) if config.fold else None
        self.conv1 = CausalConv(config.frame_channels, inner, taps=tower.middle_taps)
        self.middle = middle(
            inner, taps=tower.middle_taps, attention=tower.attention, groups=groups
        )
        self.upsamples = nn.ModuleList(_stages(config))
        colours = 3 * config.patch**2
        self.head = Head(tower.widths[-1], colours, taps=tower.taps[-1], groups=groups)
        number_slots(self)

    @property
    def layers(self) -> list[Layer]:
        """Every layer in the order in which frames pass."""
        first = [] if self.spread is None else [self.spread]
        row = [*first, self.conv1, *self.middle.values(), *self.upsamples, self.head]
        return cast(list[Layer], row)

    def forward(self, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Frames [B, 3, F, H, W], roughly in -1..1, of z [B, Z, T, h, w], and the state after.

        F is `frames_per_latent` for each latent, and 1 for the first latent of a stream.
        """
        history = History(state)
        for layer in self.layers:
            z = layer(z, history)
        return unfold(z, self.patch), history.state()

    @property
    def needs(self) -> list[int]:
        """For each layer, the newest input frames that all state from it on depends on.

        The first entry is the exact reach of the whole decoder in latents.
        """
        needs: list[int] = []
        frames = 0  # of a layer's output; nothing beyond the state is wanted from the last
        for layer in reversed(self.layers):
            frames = -(-frames // layer.rate) + layer.reach
            needs.append(frames)
        return needs[::-1]

    def warm(self, z: Tensor, state: State, *, following: int = 0) -> State:
        """The state that `forward` would hand back, without making the frames.

        Each layer is given only as many of the newest frames as the state depends on. Most of the
        work is in the big pictures near the end, where few are needed.

        Args:
            following: latents that will be warmed after these. The state is then worth nothing
                until they are, and costs only what they do not replace.
        """
        history = History(state)
        per_latent = 1  # frames at this layer
        for layer, need in zip(self.layers, self.needs, strict=True):
            frames = need - per_latent * following
            if frames <= 0 and state.started:
                break  # neither this layer nor any after it will remember what comes from here
            if not following:
                # At least one at the beginning, which gives every slot its size. What others
                # follow goes whole, as it went in the stream, and so rounds as it did there.
                z = history.newest(z, max(frames, 1))
            z = layer(z, history)
            per_latent *= layer.rate
        return history.state()


def _stages(config: VaeConfig) -> list[nn.Module]:
    tower = config.decoder
    layers: list[nn.Module] = []
    channels = tower.widths[0]
    for stage, (width, taps) in enumerate(zip(tower.widths, tower.taps, strict=True)):
        for _ in range(tower.blocks):
            layers.append(ResidualBlock(channels, width, taps=taps, groups=config.norm_groups))
            channels = width
        if stage < len(tower.temporal):
            layers.append(Upsample(width, temporal=tower.temporal[stage]))
            channels = width // 2
    return layers


def unfold(x: Tensor, patch: int) -> Tensor:
    """Spread channels over squares of `patch` x `patch` pixels, ordered as in Wan2.2."""
    if patch == 1:
        return x
    rows = rearrange(
        x.permute(0, 2, 3, 4, 1), "b t h w (c r q) -> b t (h q) (w r) c", q=patch, r=patch
    )
    return rows.permute(0, 4, 1, 2, 3)
