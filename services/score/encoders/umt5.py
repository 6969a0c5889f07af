"""UMT5's encoder (Chung et al., arXiv 2304.09151), from the file that the Wan repositories ship.

Beside the hot path: `prompts.py` → **umt5** → an avatar's conditioning. Runs once for each new
prompt, and is never in memory as a whole: a block is read, all prompts pass it, and it is let go.
At the published size that is 0.4 GB at a time instead of 11.4.

Legend: L tokens of a prompt, M width, H heads, D head size, F width of the perceptron.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from services.runtime.weights import BadCheckpoint, Shape, fit
from services.score.checkpoint.tensors import Weights, shapes

FILE = "models_t5_umt5-xxl-enc-bf16.pth"

_EPS = 1e-6
_FARTHEST = 128  # tokens apart; beyond, distances are not told apart
_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Sizes:
    words: int
    dim: int
    inner: int
    heads: int
    ffn: int
    layers: int
    buckets: int


class Umt5:
    """An encoder in its file."""

    def __init__(self, source: str, weights: Weights) -> None:
        """Raises BadCheckpoint unless these are the tensors of such an encoder."""
        self._weights, self._sizes = weights, _sizes(source, weights)
        fit(source, found=shapes(weights), expected=_expected(self._sizes))

    @property
    def width(self) -> int:
        return self._sizes.dim

    @property
    def words(self) -> int:
        """Tokens that it knows."""
        return self._sizes.words

    @torch.inference_mode()
    def encode(
        self, prompts: Sequence[Tensor], *, device: torch.device, dtype: torch.dtype | None = None
    ) -> list[Tensor]:
        """Embeddings of prompts, [L, M] float32 each, on the host.

        Args:
            prompts: token numbers, [L] each.
            device: where it computes.
            dtype: what it computes in; that of the file if not given.
        """
        table = self._weights["token_embedding.weight"]
        words = table.read(_HOST)  # stays mapped to the file: only the rows asked for are read
        dtype = dtype or table.dtype
        hidden = [words[prompt].to(device, dtype) for prompt in prompts]
        for layer in range(self._sizes.layers):

            def read(name: str, block: str = f"blocks.{layer}.") -> Tensor:
                return self._weights[f"{block}{name}.weight"].read(device).to(device, dtype)

            hidden = self._block(hidden, read)
        last = self._weights["norm.weight"].read(device).to(dtype)
        return [F.rms_norm(x, x.shape[-1:], last, eps=_EPS).float().cpu() for x in hidden]

    def _block(self, hidden: Sequence[Tensor], read: Callable[[str], Tensor]) -> list[Tensor]:
        q, k, v, o = (read(f"attn.{part}") for part in "qkvo")
        norm, far = read("norm1"), read("pos_embedding.embedding")
        attended = []
        for x in hidden:
            y = F.rms_norm(x, x.shape[-1:], norm, eps=_EPS)
            heads = [F.linear(y, part).view(len(x), self._sizes.heads, -1) for part in (q, k, v)]
            attended.append(x + F.linear(_attention(*heads, far=far), o))
        gate, up, down = read("ffn.gate.0"), read("ffn.fc1"), read("ffn.fc2")
        norm = read("norm2")
        out = []
        for x in attended:
            y = F.rms_norm(x, x.shape[-1:], norm, eps=_EPS)
            y = F.linear(y, up) * F.gelu(F.linear(y, gate), approximate="tanh")
            out.append(x + F.linear(y, down))
        return out


def _attention(q: Tensor, k: Tensor, v: Tensor, *, far: Tensor) -> Tensor:
    """Without a scale, with a bias for each distance: [L, H, D] each, `far` [buckets, H]."""
    tokens = torch.arange(len(q), device=q.device)
    bias = far[_bucket(tokens[None] - tokens[:, None], len(far))]  # [L, L, H]
    scores = torch.einsum("lhd,mhd->lmh", q, k).float() + bias.float()
    weights = scores.softmax(1).type_as(v)
    return torch.einsum("lmh,mhd->lhd", weights, v).flatten(1)


def _bucket(distance: Tensor, buckets: int) -> Tensor:
    """T5's buckets of distances: one half for each direction; near ones exact, others by log."""
    half = buckets // 2
    exact, apart = half // 2, distance.abs()
    ratio = math.log(_FARTHEST / exact)
    logs = exact + (apart.clamp(min=1).float() / exact).log() / ratio * (half - exact)
    near = torch.where(apart < exact, apart, logs.long().clamp(max=half - 1))
    return near + half * (distance > 0)


def _sizes(source: str, weights: Weights) -> _Sizes:
    def shape(name: str) -> Shape:
        if name not in weights or len(weights[name].shape) != 2:
            raise BadCheckpoint(source, missing=[name], why="no UMT5 encoder as Wan ships it")
        return weights[name].shape

    words, dim = shape("token_embedding.weight")
    buckets, heads = shape("blocks.0.pos_embedding.embedding.weight")
    numbers = [name.split(".")[1] for name in weights if name.startswith("blocks.")]
    return _Sizes(
        words=words,
        dim=dim,
        inner=shape("blocks.0.attn.q.weight")[0],
        heads=heads,
        ffn=shape("blocks.0.ffn.fc1.weight")[0],
        layers=1 + max(int(number) for number in numbers if number.isdigit()),
        buckets=buckets,
    )


def _expected(sizes: _Sizes) -> dict[str, Shape]:
    found: dict[str, Shape] = {
        "token_embedding.weight": (sizes.words, sizes.dim),
        "norm.weight": (sizes.dim,),
    }
    block: dict[str, Shape] = {
        "norm1": (sizes.dim,),
        "norm2": (sizes.dim,),
        "pos_embedding.embedding": (sizes.buckets, sizes.heads),
        **{f"attn.{part}": (sizes.inner, sizes.dim) for part in "qkv"},
        "attn.o": (sizes.dim, sizes.inner),
        "ffn.gate.0": (sizes.ffn, sizes.dim),
        "ffn.fc1": (sizes.ffn, sizes.dim),
        "ffn.fc2": (sizes.dim, sizes.ffn),
    }
    for layer in range(sizes.layers):
        found |= {f"blocks.{layer}.{name}.weight": shape for name, shape in block.items()}
    return found
