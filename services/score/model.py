"""The Wan2.1 diffusion transformer, as a diagram: latents in, prediction out.

        latents ── patch_embedding ──┐                         text ── text_embedding ─┐
                                     ▼                         CLIP ── img_emb ────────┤ keys and
        level ─── time_embedding ─► blocks × layers ◄───────── speech ── audio_proj ───┘ values
                                     │  self-attention over `memory`, cross-attention, perceptron
                                     ▼
                                    head ── prediction

State comes in as an argument: what earlier passes left is a `Memory` per layer, and keys and values
of text, picture and speech are made once (`describe`, `hear`) and given to every pass. Which pass
sees what is decided in `passes.py`. Key names are those of the Wan2.1 checkpoints.

Legend: B batch, C channels, F latent frames, h and w rows and columns of a latent, N tokens of a
frame, L = F·N tokens, M width of the model, H heads, D head size, S speakers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from services.score.adapters import (
    AudioInjector,
    OwnQuery,
    SharedQuery,
    listen,
    projection,
)
from services.score.attention import Attend, Kernel, KeysValues, Local, Memory, sdpa
from services.score.config import ClipConfig, DitConfig, MultiTalkAudio, S2vAudio, TextConfig
from services.score.reference import FramePacker, Role
from services.score.rope import turn


class Given(NamedTuple):
    """What one layer's cross-attention reads; None for what the model does not know."""

    text: KeysValues | None = None  # [B, tokens, H, D]
    image: KeysValues | None = None  # [B, tokens, H, D]
    audio: KeysValues | None = None  # [B, S, F, tokens, H, D]


class Times(NamedTuple):
    """A noise level, embedded. float32, since all layers are scaled by it."""

    blocks: Tensor  # [B, 6, M]
    head: Tensor  # [B, M]


class Dit(nn.Module):
    """Sparse-causal by what it is given to remember; bidirectional when that is nothing."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(
            config.in_channels, dim, kernel_size=config.patch, stride=config.patch
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.text_embedding = _text_embedding(config.text, dim) if config.text else None
        self.img_emb = ClipEmbedding(config.clip, dim) if config.clip else None
        if config.reference is not None:
            self.trainable_cond_mask = nn.Embedding(len(Role), dim)
            self.cond_encoder = nn.Conv3d(
                config.latent.channels, dim, kernel_size=config.patch, stride=config.patch
            )
            self.frame_packer = FramePacker(config.latent.channels, dim)
        self.audio_proj = projection(config.audio, dim) if config.audio else None
        self.audio_injector = _injector(config)
        width = self.audio_proj.width if self.audio_proj and not self.audio_injector else None
        self.blocks = nn.ModuleList(Block(config, width) for _ in range(config.layers))
        self.head = Head(config)

    def forward(
        self,
        x: Tensor,
        times: Times,
        rope: Tensor,
        *,
        given: Sequence[Given],
        memory: Sequence[Memory],
        faces: Tensor | None = None,
        on_anchor: bool = False,
    ) -> Tensor:
        """One pass.

        Args:
            x: input channels [B, C, F, h, w].
            times: of the level that all of `x` has, from `embed_time`.
            rope: positions of the tokens of `x`, frame by frame, row by row [2, L, 1, D/2].
            given: per layer, what the cross-attention reads.
            memory: per layer, what earlier passes left; takes this pass's keys and values.
            faces: [B, S, N], needed with audio: how much of a speaker's face a token shows.
            on_anchor: whether `x` is the reference picture.

        Returns:
            The prediction, [B, C_out, F, h, w] float32.
        """
        frames, rows, columns = (
            size // each for size, each in zip(x.shape[2:], self.config.patch, strict=True)
        )
        x = self._tokens(x, on_anchor=on_anchor)
        triples = zip(self.layers(), given, memory, strict=True)
        for layer, (block, known, seen) in enumerate(triples):
            x = block(x, times.blocks, rope, known, seen, faces)
            if self.audio_injector is not None and known.audio is not None:
                assert faces is not None, "speech needs to know whose face it moves"
                x = self.audio_injector(layer, x, known.audio, faces)
        x = self.head(x[:, : frames * rows * columns], times.head)
        _, rows_each, columns_each = self.config.patch
        return rearrange(
            x,
            "b (f h w) (q r c) -> b c f (h q) (w r)",
            f=frames, h=rows, w=columns, q=rows_each, r=columns_each,
        )  # fmt: skip

    def embed_time(self, level: Tensor) -> Times:
        """Embed noise levels in [0, 1], one per batch row [B]; the network sees 1000 times it."""
        half = self.config.freq_dim // 2
        steps = torch.arange(half, dtype=torch.float64, device=level.device)
        angles = 1000 * level.double()[:, None] * 10_000 ** (-steps / half)
        time = self.time_embedding(torch.cat([angles.cos(), angles.sin()], -1).float())
        return Times(self.time_projection(time).unflatten(1, (6, -1)), time)

    def describe(self, text: Tensor | None, clip: Tensor | None) -> list[Given]:
        """Keys and values of a prompt [B, tokens, dim] and of CLIP's picture [B, tokens, dim]."""
        text = self.text_embedding(text) if self.text_embedding is not None else None
        clip = self.img_emb(clip) if self.img_emb is not None else None
        return [block.cross_attn.describe(text, clip) for block in self.layers()]

    def hear(self, embeddings: Tensor, heard: Tensor) -> list[KeysValues]:
        """Keys and values of speech, per layer [B, S, F, tokens, H, D].

        Args:
            embeddings: [B, S, before + F * per_latent + after, E].
            heard: [B, S, same], true where the speaker speaks.
        """
        assert self.audio_proj is not None, "a model without audio hears nothing"
        return self._inject(self.audio_proj(embeddings, heard))

    def hear_nothing(self) -> list[KeysValues] | None:
        """The same for a reference picture, whose every speaker is silent: [1, 1, 1, ...].

        None where speech does not reach reference pictures at all.
        """
        assert self.audio_proj is not None, "a model without audio hears nothing"
        if self.audio_injector is not None:
            return None
        return self._inject(self.audio_proj.anchor())

    def layers(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _inject(self, tokens: Tensor) -> list[KeysValues]:
        injector = self.audio_injector
        if injector is not None:
            return [injector.keys_values(layer, tokens) for layer in range(self.config.layers)]
        return [block.injection.keys_values(tokens) for block in self.layers()]

    def _tokens(self, x: Tensor, *, on_anchor: bool) -> Tensor:
        """Latents [B, C, F, h, w] as tokens, frame by frame, row by row; packed frames follow."""
        tokens: Tensor = rearrange(self.patch_embedding(x), "b m f h w -> b (f h w) m")
        reference = self.config.reference
        if reference is None:
            return tokens
        roles = self.trainable_cond_mask.weight
        if not on_anchor:
            added = roles[Role.DRAWN]
            if reference.pose:  # an absent one is all zeros: of its encoder, the bias remains
                assert self.cond_encoder.bias is not None
                added = added + self.cond_encoder.bias
            return tokens + added
        tokens = tokens + roles[Role.REFERENCE]
        if reference.motion == "none":
            return tokens
        packed = self.frame_packer.standing_still(x)
        return torch.cat([tokens, packed + roles[Role.BEFORE]], 1)


class Block(nn.Module):
    """Self-attention, cross-attention, perceptron; the level scales and gates first and last."""

    def __init__(self, config: DitConfig, audio_width: int | None) -> None:
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.apart = config.audio is not None and isinstance(config.audio.adapter, MultiTalkAudio)
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.self_attn = SelfAttention(dim, config.heads, config.eps)
        self.norm3 = nn.LayerNorm(dim, eps=config.eps)
        self.cross_attn = CrossAttention(config, None if self.apart else audio_width)
        if self.apart and audio_width is not None:
            self.norm_x = nn.LayerNorm(dim, eps=config.eps)
            self.audio_cross_attn = OwnQuery(dim, config.heads, audio_width)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim)
        )

    def forward(
        self,
        x: Tensor,
        times: Tensor,
        rope: Tensor,
        given: Given,
        memory: Memory,
        faces: Tensor | None,
    ) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = (self.modulation + times)[:, :, None].unbind(1)
        y = _modulated(x, scale, shift, self.eps)
        x = (x + gate * self.self_attn(y, rope, memory)).type_as(x)
        x = x + self.cross_attn(self.norm3(x), given, faces)
        if self.apart:
            x = x + self.audio_cross_attn(self.norm_x(x), given.audio, faces)
        y = _modulated(x, scale2, shift2, self.eps)
        out: Tensor = (x + gate2 * self.ffn(y)).type_as(x)
        return out

    @property
    def injection(self) -> OwnQuery | SharedQuery:
        """What makes this layer's keys and values of speech."""
        return self.audio_cross_attn if self.apart else self.cross_attn.processor


class SelfAttention(nn.Module):
    """Rotary attention over memory and self; queries and keys normed over all heads at once."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps=eps), nn.RMSNorm(dim, eps=eps)
        self.attend: Attend = Local(sdpa)

    def forward(self, x: Tensor, rope: Tensor, memory: Memory) -> Tensor:
        # `start` may send each on its way while the next projection computes.
        v = self.attend.start(self._heads(self.v(x)))
        k = self.attend.start(turn(self._heads(self.norm_k(self.k(x))), rope))
        q = self.attend.start(turn(self._heads(self.norm_q(self.q(x))), rope))
        out: Tensor = self.o(self.attend(q, k, v, memory).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)


class CrossAttention(nn.Module):
    """One query asks text, picture and speech; their answers are summed before the output."""

    def __init__(self, config: DitConfig, audio_width: int | None) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.heads = config.heads
        self.q, self.o = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        if config.text is not None:
            self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.norm_k = nn.RMSNorm(dim, eps=eps)
        if config.clip is not None:
            self.k_img, self.v_img = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.norm_k_img = nn.RMSNorm(dim, eps=eps)
        self.shares_query = audio_width is not None
        if audio_width is not None:
            self.processor = SharedQuery(dim, config.heads, audio_width)
        self.kernel: Kernel = sdpa

    def forward(self, x: Tensor, given: Given, faces: Tensor | None) -> Tensor:
        q = self._heads(self.norm_q(self.q(x)))
        answer = torch.zeros_like(q)
        for source in (given.text, given.image):
            if source is not None:
                answer = answer + self.kernel(q, source.k, source.v)
        if self.shares_query:
            assert given.audio is not None, "this model needs speech, if only silence"
            assert faces is not None, "speech needs to know whose face it moves"
            answer = answer + listen(self.kernel, q, given.audio, faces)
        out: Tensor = self.o(answer.flatten(2))
        return out

    def describe(self, text: Tensor | None, clip: Tensor | None) -> Given:
        """Keys and values of embedded text and picture, [B, tokens, M] each."""
        known = Given()
        if text is not None:
            k, v = self.norm_k(self.k(text)), self.v(text)
            known = known._replace(text=KeysValues(self._heads(k), self._heads(v)))
        if clip is not None:
            k, v = self.norm_k_img(self.k_img(clip)), self.v_img(clip)
            known = known._replace(image=KeysValues(self._heads(k), self._heads(v)))
        return known

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)


class Head(nn.Module):
    """From tokens to the numbers of a patch."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        dim, (_, rows, columns) = config.dim, config.patch
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.head = nn.Linear(dim, config.out_channels * rows * columns)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time[:, None])[:, :, None].unbind(1)
        out: Tensor = self.head(_modulated(x, scale, shift, self.eps))
        return out.float()


class ClipEmbedding(nn.Module):
    """CLIP's tokens of the reference picture, brought to the model's width."""

    def __init__(self, clip: ClipConfig, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(clip.dim),
            nn.Linear(clip.dim, clip.dim),
            nn.GELU(),
            nn.Linear(clip.dim, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, clip: Tensor) -> Tensor:
        out: Tensor = self.proj(clip)
        return out


def _injector(config: DitConfig) -> AudioInjector | None:
    """What injects speech between the blocks, where it is not injected inside them."""
    if config.audio is None or not isinstance(config.audio.adapter, S2vAudio):
        return None
    return AudioInjector(config, config.audio.adapter)


def _text_embedding(text: TextConfig, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(text.dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))


def _modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Norm without weights, then scale and shift by the level, in float32; dtype of `x`."""
    return (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift).type_as(x)
