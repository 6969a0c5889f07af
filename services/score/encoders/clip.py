"""CLIP's picture encoder (Radford et al., arXiv 2103.00020), from the file of the Wan repositories.

Beside the hot path, like `umt5.py`: a layer at a time. The file also holds the text half, which
nobody reads here. Image-to-video models look at what comes out of the last layer but one.

Legend: N patches and one token more, M width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from services.runtime.weights import BadCheckpoint, Shape, fit
from services.score.attention import sdpa
from services.score.checkpoint.tensors import Weights, shapes

FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"

_HEAD_DIM = 80  # of ViT-H; shapes alone do not tell
_EPS = 1e-5
# Of the pictures that CLIP was trained with, by colour.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class _Sizes:
    dim: int
    patch: int
    tokens: int
    mlp: int
    layers: int
    out: int


class ClipVision:
    """An encoder in its file."""

    def __init__(self, source: str, weights: Weights) -> None:
        """Raises BadCheckpoint unless these hold the tensors of such an encoder."""
        self._weights = {
            name.removeprefix("visual."): stored
            for name, stored in weights.items()
            if name.startswith("visual.")
        }
        self._sizes = _sizes(source, self._weights)
        fit(source, found=shapes(self._weights), expected=_expected(self._sizes))

    @property
    def width(self) -> int:
        return self._sizes.dim

    @property
    def tokens(self) -> int:
        return self._sizes.tokens

    @torch.inference_mode()
    def encode(
        self, picture: Tensor, *, device: torch.device, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Tokens of a picture [rows, columns, 3] uint8: [N, M] float32, on the host.

        Args:
            device: where it computes.
            dtype: what it computes in; that of the file if not given.
        """
        dtype = dtype or self._weights["patch_embedding.weight"].dtype

        def read(name: str) -> Tensor:
            return self._weights[name].read(device).to(device, dtype)

        def normed(x: Tensor, name: str) -> Tensor:
            weight, bias = read(f"{name}.weight"), read(f"{name}.bias")
            return F.layer_norm(x, x.shape[-1:], weight, bias, eps=_EPS)

        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, read(f"{name}.weight"), read(f"{name}.bias"))

        seen = self._seen(picture.to(device)).to(dtype)
        patches = F.conv2d(seen, read("patch_embedding.weight"), stride=self._sizes.patch)
        x = torch.cat([read("cls_embedding"), patches.flatten(2).transpose(1, 2)], 1)
        x = normed(x + read("pos_embedding"), "pre_norm")
        for layer in range(self._sizes.layers - 1):
            block = f"transformer.{layer}"
            qkv = linear(normed(x, f"{block}.norm1"), f"{block}.attn.to_qkv")
            q, k, v = rearrange(qkv, "b n (p h d) -> p b n h d", p=3, d=_HEAD_DIM)
            x = x + linear(sdpa(q, k, v).flatten(2), f"{block}.attn.proj")
            y = F.gelu(linear(normed(x, f"{block}.norm2"), f"{block}.mlp.0"))
            x = x + linear(y, f"{block}.mlp.2")
        return x[0].float().cpu()

    def _seen(self, picture: Tensor) -> Tensor:
        """[1, 3, side, side], squeezed to a square as the published models were shown it."""
        side = self._sizes.patch * isqrt(self._sizes.tokens - 1)
        x = picture.permute(2, 0, 1)[None].float() / 127.5 - 1
        x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False) * 0.5 + 0.5
        mean, std = (torch.tensor(each, device=x.device).view(3, 1, 1) for each in (_MEAN, _STD))
        return (x - mean) / std


def _sizes(source: str, weights: Weights) -> _Sizes:
    def shape(name: str, rank: int) -> Shape:
        if name not in weights or len(weights[name].shape) != rank:
            missing = [f"visual.{name}"]
            raise BadCheckpoint(source, missing=missing, why="no CLIP as the Wan repositories ship")
        return weights[name].shape

    dim, _, patch, _ = shape("patch_embedding.weight", 4)
    numbers = [name.split(".")[1] for name in weights if name.startswith("transformer.")]
    return _Sizes(
        dim=dim,
        patch=patch,
        tokens=shape("pos_embedding", 3)[1],
        mlp=shape("transformer.0.mlp.0.weight", 2)[0],
        layers=1 + max(int(number) for number in numbers if number.isdigit()),
        out=shape("head", 2)[1],
    )


def _expected(sizes: _Sizes) -> dict[str, Shape]:
    dim = sizes.dim
    found: dict[str, Shape] = {
        "cls_embedding": (1, 1, dim),
        "pos_embedding": (1, sizes.tokens, dim),
        "patch_embedding.weight": (dim, 3, sizes.patch, sizes.patch),
        "head": (dim, sizes.out),
    }
    pairs: dict[str, Shape] = {"pre_norm": (dim,), "post_norm": (dim,)}
    for layer in range(sizes.layers):
        block = f"transformer.{layer}"
        pairs |= {
            f"{block}.norm1": (dim,),
            f"{block}.norm2": (dim,),
            f"{block}.attn.to_qkv": (3 * dim, dim),
            f"{block}.attn.proj": (dim, dim),
            f"{block}.mlp.0": (sizes.mlp, dim),
            f"{block}.mlp.2": (dim, sizes.mlp),
        }
    for name, shape in pairs.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found
