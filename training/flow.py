"""One forward pass of learning, for the bidirectional teacher and the sparse-causal student.

latents → **flow** → losses. Both are the model that is served (`services.score.model`); what makes
one a teacher and the other a student is only what its passes see.

Legend: B clips, K chunks, C latent channels, F latent frames of a chunk, h and w rows and columns
of a latent, T latent frames of a clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from services.score.attention import KeysValues
from services.score.cache import Handed
from services.score.config import DitConfig
from services.score.denoise import clean_from, noised
from services.score.model import Dit
from services.score.passes import Passes, Places, Scene, clip, input_channels
from services.score.rope import table
from training import losses
from training.latents import LatentClips

Sight = Literal["whole", "causal"]  # what a chunk sees: all of its clip, or what a stream has


def initialised(dit: Dit) -> Dit:
    """Fresh weights as diffusion transformers like them.

    Matrices keep the size of what passes through them; gates begin open; the last layer and what
    speech adds begin at zero, so the first prediction is the reference picture.
    """
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(dit.patch_embedding.weight.flatten(1))
    scales = cast(nn.Linear, dit.time_projection[1])
    nn.init.normal_(scales.weight, std=0.01)
    with torch.no_grad():
        scales.bias.view(6, -1)[[2, 5]] = 1  # the gates
    for block in dit.layers():
        nn.init.normal_(block.modulation, std=0.02)
        nn.init.zeros_(block.cross_attn.o.weight)
    nn.init.normal_(dit.head.modulation, std=0.02)
    nn.init.zeros_(dit.head.head.weight)
    return dit


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a batch is drawn from: avatars and, per layer, keys and values of their speech."""

    scene: Scene
    audio: list[KeysValues]  # [B * K, S = 1, F, A, H, D]


def conditions(
    dit: Dit, clips: LatentClips, *, deaf: Tensor | None = None, blind: Tensor | None = None
) -> Conditions:
    """Conditions of `clips`; rows that are `deaf` [B] hear nothing, `blind` ones see no picture.

    To be deaf is not to hear silence: speech then reaches no token at all. That is what guidance
    is measured against, while silence is a state that the model knows.
    """
    anchor, faces = clips.anchor.float(), clips.faces
    if blind is not None:
        anchor = anchor * losses.per_row(~blind, anchor)
    if deaf is not None:
        faces = faces * (~deaf)[:, None]
    heard = clips.heard.flatten(0, 1)[:, None]
    return Conditions(
        Scene(anchor, dit.describe(None, None), faces[:, None]),
        dit.hear(clips.embeddings.float().flatten(0, 1)[:, None], heard),
    )


class Flow:
    """A model that is asked for the clean latents of noisy clips."""

    def __init__(self, dit: Dit, sight: Sight) -> None:
        self.dit, self.sight = dit, sight
        device = dit.patch_embedding.weight.device
        self.passes = Passes(dit, Places(dit.config, device))
        self._device = device

    @property
    def config(self) -> DitConfig:
        return self.dit.config

    def believed(
        self,
        noisy: Tensor,
        level: Tensor,
        given: Conditions,
        *,
        context: Tensor,
        context_gradient: bool = True,
    ) -> Tensor:
        """Clean latents [B, K, C, F, h, w] that the model reads out of `noisy` at `level` [B].

        Args:
            context: finished chunks as the causal model sees them [B, K, C, F, h, w].
        """
        if self.sight == "whole":
            said = self._whole(noisy, level, given)
        else:
            said = clip(
                self.passes,
                given.scene,
                clean=context,
                noisy=noisy,
                level=level,
                audio=given.audio,
                context_gradient=context_gradient,
            )
        anchor = given.scene.anchor[:, None]
        return clean_from(self.config, said.float(), noisy, losses.per_row(level, noisy), anchor)

    def _whole(self, noisy: Tensor, level: Tensor, given: Conditions) -> Tensor:
        """All frames see all frames and the anchor; the anchor sees itself."""
        chunks, frames = noisy.shape[1], noisy.shape[1] * noisy.shape[3]
        layers = [Handed() for _ in range(self.config.layers)]
        self.passes.anchor(given.scene, self.dit.embed_time(level.new_zeros(1)), layers)
        scene = given.scene
        x = rearrange(noisy, "b k c f h w -> b c (k f) h w")
        x = input_channels(self.config.anchor, x, scene.anchor, on_anchor=False)
        known = [
            layer._replace(audio=KeysValues(*(_joined(part, chunks) for part in speech)))
            for layer, speech in zip(scene.given, given.audio, strict=True)
        ]
        rows, columns = self.config.grid
        first = self.config.positions.context
        rope = table(
            self.config.head_dim,
            frames=range(first, first + frames),
            rows=range(rows),
            columns=range(columns),
        ).to(self._device)
        memory = [Handed(*([layer.own] if layer.own else [])) for layer in layers]
        out: Tensor = self.dit(
            x, self.dit.embed_time(level), rope, given=known, memory=memory, faces=scene.faces
        )
        return rearrange(out, "b c (k f) h w -> b k c f h w", k=chunks)


class Believer(nn.Module):
    """A flow whose whole pass, conditions and all, is one call: what is spread over devices."""

    def __init__(self, dit: Dit, sight: Sight) -> None:
        super().__init__()
        self.dit = dit
        self._sight: Sight = sight

    def forward(
        self,
        noisy: Tensor,
        level: Tensor,
        clips: LatentClips,
        *,
        context: Tensor,
        context_gradient: bool = True,
        deaf: Tensor | None = None,
        blind: Tensor | None = None,
    ) -> Tensor:
        """As `Flow.believed`, with the conditions of `clips`."""
        given = conditions(self.dit, clips, deaf=deaf, blind=blind)
        return Flow(self.dit, self._sight).believed(
            noisy, level, given, context=context, context_gradient=context_gradient
        )


@dataclass(frozen=True, slots=True)
class FlowLoss:
    """How a batch is noised and what counts."""

    shift: float = 3.0
    lowest: float = 0.02  # level
    floor: float = 0.15  # below it, errors count as at it
    mouth: float = 4.0  # weight of the mouth's latents
    deaf: float = 0.0  # share of rows without speech, for guidance
    blind: float = 0.0  # share of rows without reference picture
    anywhere: float = 0.3  # share of rows that are not told where the face is
    context_noise: float = 0.2  # highest level of a context's noise
    context_noised: float = 0.8  # share of contexts that have any
    context_offset: float = 0.3  # of its level: a constant error per channel, as streams grow
    context_gradient: float = 0.25  # share of steps that learn through the context passes


def levels(loss: FlowLoss, rows: int, generator: torch.Generator) -> Tensor:
    """One level per clip, shared by its chunks: [B]."""
    uniform = torch.rand(rows, generator=generator, device=generator.device)
    return losses.shifted(uniform, loss.shift).clamp(min=loss.lowest)


def disturbed(loss: FlowLoss, clean: Tensor, generator: torch.Generator) -> Tensor:
    """Contexts [B, K, C, F, h, w] with the errors that a stream's own chunks would have."""
    device = generator.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    rows, chunks, channels = clean.shape[:3]
    some = draw(rows, chunks, 1, 1, 1, 1) < loss.context_noised
    level = draw(rows, chunks, 1, 1, 1, 1) * loss.context_noise * some
    offset = loss.context_offset * level * noise(rows, chunks, channels, 1, 1, 1)
    return noised(clean, noise(*clean.shape), level) + offset


def mouth_weight(loss: FlowLoss, clips: LatentClips) -> Tensor:
    """Weights of mean 1, [B, K, 1, F, h, w]."""
    weight = 1 + (loss.mouth - 1) * (clips.mouth - 1)
    return (weight / weight.mean())[:, :, None]


def some(share: float, rows: int, generator: torch.Generator) -> Tensor:
    """Which rows a chance of `share` hits, bool [B]."""
    return torch.rand(rows, generator=generator, device=generator.device) < share


def euler_levels(steps: int, shift: float) -> list[float]:
    """Levels of a many-step sampler from 1 to 0, both included."""
    return [float(losses.shifted(torch.tensor(1 - i / steps), shift)) for i in range(steps + 1)]


def sized(config: DitConfig, *, dim: int, layers: int, heads: int) -> DitConfig:
    """The same model, wider or deeper."""
    ratio = config.ffn_dim / config.dim
    return replace(config, dim=dim, layers=layers, heads=heads, ffn_dim=math.ceil(ratio * dim))


def _joined(x: Tensor, chunks: int) -> Tensor:
    """Speech of chunks as that of one clip: [B * K, S, F, A, H, D] → [B, S, K * F, A, H, D]."""
    return rearrange(x, "(b k) s f a h d -> b s (k f) a h d", k=chunks)
