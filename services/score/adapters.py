"""Audio adapters: from audio embeddings to what the tokens of a face attend to.

Beside `model.py`, which calls a projection once per chunk and an injection in every block. Three
published designs; key names are those of their checkpoints.

- TalkingMachines (`paper`): a module over the whole window of a latent frame, then keys and values
  in every cross-attention, whose query they share.
- FantasyTalking: one linear layer instead of the module; the same keys and values.
- MultiTalk / InfiniteTalk: a window squeezed into 32 tokens; an attention of its own per block.

Legend: B batch, S speakers, F latent frames, N tokens of a frame, W embeddings a latent frame
hears, E numbers per embedding, A audio tokens per latent frame, C width of an audio token, H heads,
D head size.
"""

from __future__ import annotations

from typing import assert_never

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from services.score.attention import Kernel, KeysValues, sdpa
from services.score.config import (
    AudioConfig,
    FantasyTalkingAudio,
    MultiTalkAudio,
    PaperAudio,
)


class AudioProjection(nn.Module):
    """Embeddings in, tokens out: the silence of those who do not speak, windows, a projection.

    Subclasses give `tokens`.
    """

    silence: Tensor  # [E]

    def __init__(self, audio: AudioConfig, *, width: int) -> None:
        super().__init__()
        self.width = width  # C
        self._step, self._window = audio.per_latent, audio.window
        silence = torch.zeros(audio.embedding_dim)
        if audio.silence == "learned":
            self.silence = nn.Parameter(silence)
        else:
            self.register_buffer("silence", silence, persistent=False)

    def forward(self, embeddings: Tensor, heard: Tensor) -> Tensor:
        """Tokens of every latent frame: [B, S, F, A, C].

        Args:
            embeddings: [B, S, before + F * per_latent + after, E].
            heard: [B, S, same], true where the speaker speaks; elsewhere silence takes the place.
        """
        audible = torch.where(heard[..., None], embeddings, self.silence)
        windows = audible.unfold(2, self._window, self._step)  # [B, S, F, E, W]
        return self.tokens(windows.transpose(-1, -2))

    def anchor(self) -> Tensor:
        """Tokens of a reference picture, on which nobody speaks: [1, 1, 1, A, C]."""
        return self.tokens(self.silence.expand(1, 1, 1, self._window, -1))

    def tokens(self, windows: Tensor) -> Tensor:
        """[B, S, F, W, E] → [B, S, F, A, C]."""
        raise NotImplementedError


class PaperProjection(AudioProjection):
    """Transformer blocks over the embeddings of one window: A = W tokens."""

    def __init__(self, audio: AudioConfig, adapter: PaperAudio) -> None:
        super().__init__(audio, width=adapter.width)
        self.proj = nn.Linear(audio.embedding_dim, adapter.width)
        self.place = nn.Parameter(torch.randn(audio.window, adapter.width) * 0.02)
        self.blocks = nn.ModuleList(
            WindowBlock(adapter.width, adapter.heads) for _ in range(adapter.depth)
        )
        self.norm = nn.LayerNorm(adapter.width)

    def tokens(self, windows: Tensor) -> Tensor:
        x = (self.proj(windows) + self.place).flatten(0, 2)  # [B·S·F, W, C]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x).unflatten(0, windows.shape[:3])
        return out


class WindowBlock(nn.Module):
    """Dense attention within one window, then a perceptron; both residual, norm first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        qkv = rearrange(self.qkv(self.norm1(x)), "b w (p h d) -> p b w h d", p=3, h=self.heads)
        x = x + self.out(sdpa(*qkv).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class FantasyTalkingProjection(AudioProjection):
    """One linear layer and a norm: A = W tokens."""

    def __init__(self, audio: AudioConfig, adapter: FantasyTalkingAudio) -> None:
        super().__init__(audio, width=adapter.width)
        self.proj = nn.Linear(audio.embedding_dim, adapter.width, bias=False)
        self.norm = nn.LayerNorm(adapter.width)

    def tokens(self, windows: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(windows))
        return out


class MultiTalkProjection(AudioProjection):
    """A window side by side through three layers: A = 32 tokens, whatever W is.

    `proj1` takes the first frame of a video, which is one frame instead of `per_latent`.
    """

    def __init__(self, audio: AudioConfig, adapter: MultiTalkAudio) -> None:
        super().__init__(audio, width=adapter.width)
        self._tokens = adapter.tokens
        self._first = audio.window - audio.per_latent + 1
        self.proj1 = nn.Linear(self._first * audio.embedding_dim, adapter.hidden)
        self.proj1_vf = nn.Linear(audio.window * audio.embedding_dim, adapter.hidden)
        self.proj2 = nn.Linear(adapter.hidden, adapter.hidden)
        self.proj3 = nn.Linear(adapter.hidden, adapter.tokens * adapter.width)
        self.norm = nn.LayerNorm(adapter.width)

    def tokens(self, windows: Tensor) -> Tensor:
        return self._squeezed(self.proj1_vf(windows.flatten(-2)))

    def anchor(self) -> Tensor:
        return self._squeezed(self.proj1(self.silence.repeat(self._first).expand(1, 1, 1, -1)))

    def _squeezed(self, x: Tensor) -> Tensor:
        x = self.proj3(F.relu(self.proj2(F.relu(x))))
        out: Tensor = self.norm(x.view(*x.shape[:-1], self._tokens, self.width))
        return out


class SharedQuery(nn.Module):
    """Keys and values from audio tokens for a cross-attention that brings its own query."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, dim, bias=False)
        self.v_proj = nn.Linear(width, dim, bias=False)

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """[B, S, F, A, C] → [B, S, F, A, H, D] each."""
        split = (*tokens.shape[:-1], self.heads, -1)
        return KeysValues(self.k_proj(tokens).view(split), self.v_proj(tokens).view(split))


class OwnQuery(nn.Module):
    """MultiTalk's attention: its own query and output, after the text's cross-attention."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(width, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.kernel: Kernel = sdpa

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """[B, S, F, A, C] → [B, S, F, A, H, D] each."""
        return KeysValues(*self.kv_linear(tokens).unflatten(-1, (2, self.heads, -1)).unbind(-3))

    def forward(self, x: Tensor, audio: KeysValues, faces: Tensor) -> Tensor:
        q = self.q_linear(x).view(*x.shape[:-1], self.heads, -1)
        out: Tensor = self.proj(listen(self.kernel, q, audio, faces).flatten(2))
        # The projection's bias may not act where nobody speaks.
        anywhere = faces.amax(1).repeat(1, audio.k.shape[2])
        return out * anywhere[..., None]


def listen(kernel: Kernel, q: Tensor, audio: KeysValues, faces: Tensor) -> Tensor:
    """Attention of each latent frame's tokens to that frame's audio, inside the faces alone.

    Args:
        q: [B, F·N, H, D].
        audio: [B, S, F, A, H, D] each.
        faces: [B, S, N]; how much of speaker S's face a token of the frame shows, 0 to 1.

    Returns:
        [B, F·N, H, D]; zero where no face is.
    """
    speakers, frames = audio.k.shape[1:3]
    q = repeat(q, "b (f n) h d -> (b s f) n h d", s=speakers, f=frames)
    out = kernel(q, audio.k.flatten(0, 2), audio.v.flatten(0, 2))
    out = rearrange(out, "(b s f) n h d -> b s f n h d", s=speakers, f=frames)
    return einsum(out, faces, "b s f n h d, b s n -> b f n h d").flatten(1, 2)


def projection(audio: AudioConfig) -> AudioProjection:
    """The projection module that `audio` asks for."""
    match audio.adapter:
        case PaperAudio() as adapter:
            return PaperProjection(audio, adapter)
        case FantasyTalkingAudio() as adapter:
            return FantasyTalkingProjection(audio, adapter)
        case MultiTalkAudio() as adapter:
            return MultiTalkProjection(audio, adapter)
        case _:
            assert_never(audio.adapter)
