"""Audio adapters: from audio embeddings to what the tokens of a face attend to.

Beside `model.py`, which calls a projection once per chunk and an injection in every block. Four
published designs; key names are those of their checkpoints, below the names that `Dit` gives them.

- TalkingMachines (`paper`): a module over the whole window of a latent frame, then keys and values
  in every cross-attention, whose query they share.
- FantasyTalking: one linear layer instead of the module; the same keys and values.
- MultiTalk / InfiniteTalk: a window squeezed into 32 tokens; an attention of its own per block.
- Wan2.2-S2V: convolutions over a window; attentions of their own after some blocks, whose queries
  are styled by one more token (AdaIN).

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
    DitConfig,
    FantasyTalkingAudio,
    MultiTalkAudio,
    PaperAudio,
    S2vAudio,
)

_CONV_EPS = 1e-6  # of Wan2.2-S2V's norms, and of the one before its injected attentions
_ADAIN_EPS = 1e-5


class AudioProjection(nn.Module):
    """Embeddings in, tokens out: the silence of those who do not speak, windows, a projection.

    Subclasses give `tokens`.
    """

    silence: Tensor  # [E]

    def __init__(self, audio: AudioConfig, *, width: int) -> None:
        super().__init__()
        self.width = width  # C
        self._step, self._window = audio.per_latent, audio.window
        self._replaced = audio.silence != "heard"
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
        audible = embeddings
        if self._replaced:
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
        self.kernel: Kernel = sdpa

    def forward(self, x: Tensor) -> Tensor:
        qkv = rearrange(self.qkv(self.norm1(x)), "b w (p h d) -> p b w h d", p=3, h=self.heads)
        x = x + self.out(self.kernel(*qkv).flatten(2))
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


class S2vProjection(AudioProjection):
    """Hidden states mixed into one, then three convolutions over time: A = 1 + tokens + 1.

    First the token that styles, then those of the window, last a learned one.
    """

    def __init__(self, audio: AudioConfig, adapter: S2vAudio, dim: int) -> None:
        super().__init__(audio, width=dim)
        self._states, self._before = adapter.states, audio.before
        self._repeats = adapter.past == "repeated"
        self.weights = nn.Parameter(torch.full((1, adapter.states, 1, 1), 0.01))
        self.encoder = S2vEncoder(audio.embedding_dim // adapter.states, dim, adapter.tokens)

    def forward(self, embeddings: Tensor, heard: Tensor) -> Tensor:
        if self._repeats:
            first = embeddings[:, :, self._before, None].expand(-1, -1, self._before, -1)
            embeddings = torch.cat([first, embeddings[:, :, self._before :]], 2)
        return super().forward(embeddings, heard)

    def tokens(self, windows: Tensor) -> Tensor:
        shares = F.silu(self.weights.flatten().float())
        states = rearrange(windows.float(), "b s f w (k e) -> b s f w k e", k=self._states)
        mixed = einsum(states, shares / shares.sum(), "b s f w k e, k -> b s f w e")
        out: Tensor = self.encoder(mixed.type_as(windows).flatten(0, 2))
        speakers, frames = windows.shape[1:3]
        return rearrange(out, "(b s f) a m -> b s f a m", s=speakers, f=frames)


class S2vEncoder(nn.Module):
    """Convolutions that each see two steps back and, but for the first, halve the rate.

    Nine embeddings, a latent frame's own four and five before them, become one frame of tokens.
    """

    def __init__(self, width: int, dim: int, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self.conv1_local = _Named(nn.Conv1d(width, dim // 4 * tokens, 3))
        self.conv1_global = _Named(nn.Conv1d(width, dim // 4, 3))
        self.conv2 = _Named(nn.Conv1d(dim // 4, dim // 2, 3, stride=2))
        self.conv3 = _Named(nn.Conv1d(dim // 2, dim, 3, stride=2))
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[b, 9, width] → [b, 1 + tokens + 1, M]."""
        x = x.transpose(1, 2)
        local = rearrange(self.conv1_local(x), "b (n c) t -> (b n) c t", n=self._tokens)
        styling = self.final_linear(self._halved_twice(self.conv1_global(x)))[:, None]
        spoken = rearrange(self._halved_twice(local), "(b n) m -> b n m", n=self._tokens)
        padding = self.padding_tokens[0].expand(len(x), -1, -1)
        return torch.cat([styling, spoken, padding], 1)

    def _halved_twice(self, x: Tensor) -> Tensor:
        """[b, c, 7] → [b, M]."""
        x = self.conv3(_settled(self.conv2(_settled(x))))
        return _settled(x)[..., 0]


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


class AudioInjector(nn.Module):
    """Wan2.2-S2V's attentions to speech: each after a block of its own."""

    def __init__(self, config: DitConfig, adapter: S2vAudio) -> None:
        super().__init__()
        dim, heads, eps = config.dim, config.heads, config.eps
        places = adapter.layers
        self.places = {layer: place for place, layer in enumerate(places)}
        self.injector = nn.ModuleList(InjectedAttention(dim, heads, eps) for _ in places)
        self.injector_adain_layers = nn.ModuleList(Style(dim) for _ in places)

    def keys_values(self, layer: int, tokens: Tensor) -> KeysValues:
        """What follows block `layer` knows of speech: [B, S, F, A, C] → [B, S, F, A, H, D] each.

        The first of these is not attended to: it is the style's shift, as a key, and its scale, as
        a value. Layers that nothing follows get no tokens.
        """
        attention, style = self.attention(layer), self._style(layer)
        if attention is None or style is None:
            nothing = tokens.new_zeros(*tokens.shape[:3], 0, 1, 1)
            return KeysValues(nothing, nothing)
        known, styled = attention.describe(tokens[..., 1:, :]), style.of(tokens[..., :1, :])
        as_token = (*styled.k.shape[:-1], *known.k.shape[-2:])
        return KeysValues(
            torch.cat([styled.k.view(as_token), known.k], -3),
            torch.cat([styled.v.view(as_token), known.v], -3),
        )

    def forward(self, layer: int, x: Tensor, audio: KeysValues | None, faces: Tensor) -> Tensor:
        """`x` [B, F·N, M] after block `layer`, with what its speakers do to it."""
        attention = self.attention(layer)
        if attention is None or audio is None:
            return x
        out: Tensor = x + attention(x, audio, faces)
        return out

    def use(self, kernel: Kernel) -> None:
        """Let all attentions compute by `kernel`."""
        for attention in self.injector:
            assert isinstance(attention, InjectedAttention)
            attention.kernel = kernel

    def attention(self, layer: int) -> InjectedAttention | None:
        """What follows block `layer`, if anything does."""
        if layer not in self.places:
            return None
        attention = self.injector[self.places[layer]]
        assert isinstance(attention, InjectedAttention)
        return attention

    def _style(self, layer: int) -> Style | None:
        style = self.injector_adain_layers[self.places[layer]] if layer in self.places else None
        assert style is None or isinstance(style, Style)
        return style


class Style(nn.Module):
    """Shift and scale of normalised tokens, from one vector (diffusers' `AdaLayerNorm`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def of(self, token: Tensor) -> KeysValues:
        """[..., M] → shift and scale, [..., M] each."""
        shift, scale = self.linear(F.silu(token)).chunk(2, -1)
        return KeysValues(shift.contiguous(), scale.contiguous())


class InjectedAttention(nn.Module):
    """Each latent frame's tokens, styled by its speaker, ask that speaker's speech."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps=eps), nn.RMSNorm(dim, eps=eps)
        self.kernel: Kernel = sdpa

    def describe(self, tokens: Tensor) -> KeysValues:
        """[..., A, M] → [..., A, H, D] each."""
        k, v = self.norm_k(self.k(tokens)), self.v(tokens)
        split = (*k.shape[:-1], self.heads, -1)
        return KeysValues(k.view(split), v.view(split))

    def forward(self, x: Tensor, audio: KeysValues, faces: Tensor) -> Tensor:
        speakers, frames = audio.k.shape[1:3]
        shift, scale = (part[..., :1, :, :].flatten(-2) for part in audio)  # [B, S, F, 1, M]
        plain = F.layer_norm(x.float(), x.shape[-1:], eps=_ADAIN_EPS)
        plain = rearrange(plain, "b (f n) m -> b 1 f n m", f=frames)
        styled = (plain * (1 + scale) + shift).type_as(x)
        q = rearrange(self.norm_q(self.q(styled)), "b s f n (h d) -> (b s f) n h d", h=self.heads)
        k, v = (part[..., 1:, :, :].flatten(0, 2) for part in audio)
        out = self.o(self.kernel(q, k, v).flatten(2))
        out = rearrange(out, "(b s f) n m -> b s f n m", s=speakers, f=frames)
        shown: Tensor = einsum(out, faces, "b s f n m, b s n -> b f n m").flatten(1, 2)
        return shown


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


def projection(audio: AudioConfig, dim: int) -> AudioProjection:
    """The projection module that `audio` asks for, in a model of width `dim`."""
    match audio.adapter:
        case PaperAudio() as adapter:
            return PaperProjection(audio, adapter)
        case FantasyTalkingAudio() as adapter:
            return FantasyTalkingProjection(audio, adapter)
        case MultiTalkAudio() as adapter:
            return MultiTalkProjection(audio, adapter)
        case S2vAudio() as adapter:
            return S2vProjection(audio, adapter, dim)
        case _:
            assert_never(audio.adapter)


def _settled(x: Tensor) -> Tensor:
    """Norm over the channels of [b, c, t], without weights, then SiLU."""
    return F.silu(F.layer_norm(x.transpose(1, 2), x.shape[1:2], eps=_CONV_EPS)).transpose(1, 2)


class _Named(nn.Module):
    """A convolution under the name that it has in published files: `conv`."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out
