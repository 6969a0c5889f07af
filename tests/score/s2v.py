"""The Wan2.2-S2V family, small: a checkpoint in every published layout, and the published forward.

`Published` is written from the layout alone, by the names of the files, one whole sequence at a
time; nothing of `services.score.model` is used in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.normalization import AdaLayerNorm
from safetensors.torch import save_file
from torch import Tensor

from services.score.checkpoint.opening import expected_shapes
from services.score.checkpoint.recipes import Recipe, prepared, sized
from services.score.config import (
    AudioConfig,
    DitConfig,
    ReferenceConfig,
    S2vAudio,
    TextConfig,
)
from services.score.frontend.config import Wav2Vec2FrontEnd
from services.score.rope import table
from tests.score import checkpoints

STATES, WIDTH, LAYERS = 4, 16, (0, 4)  # of the wav2vec 2.0 of `frontends.network`
SIDE = 64  # pixels

BASE = DitConfig(
    dim=256,
    ffn_dim=64,
    heads=2,
    layers=5,
    text=TextConfig(dim=24),
    reference=ReferenceConfig(),
    audio=AudioConfig(
        adapter=S2vAudio(states=STATES, layers=LAYERS),
        front_end=Wav2Vec2FrontEnd(states="all"),
        embedding_dim=STATES * WIDTH,
        per_latent=4,
        before=5,
        after=0,
        silence="heard",
        via=30,
    ),
)


def config(recipe: Recipe, side: int = SIDE) -> DitConfig:
    return sized("small", prepared("small", BASE, recipe), side, side)


def published_name(name: str) -> str:
    return name.replace("audio_proj.", "casual_audio_encoder.")


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Weights of `BASE` by the published names."""
    torch.manual_seed(seed)
    return {
        published_name(name): torch.randn(shape) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        for name, shape in expected_shapes(BASE).items()
    }


def write_wan22(folder: Path, weights: Mapping[str, Tensor], shards: int = 3) -> Path:
    """The repository of Wan2.2-S2V, as published: sharded, with what its config.json says."""
    described = checkpoints.wan_json(BASE) | {
        "_class_name": "WanModel_S2V",
        "model_type": "s2v",
        "in_dim": 16,
        "audio_dim": WIDTH,
        "num_audio_token": 4,
        "cond_dim": 16,
        "enable_adain": True,
        "adain_mode": "attn_norm",
        "enable_framepack": True,
        "enable_motioner": False,
        "framepack_drop_mode": "padd",
        "zero_timestep": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described))
    checkpoints.write_shards(folder, dict(weights), shards)
    return folder


def write_realvideo(file: Path, weights: Mapping[str, Tensor]) -> Path:
    torch.save({"generator": {f"model.{name}": w for name, w in weights.items()}}, file)
    return file


def write_live_avatar(file: Path, seed: int = 9) -> tuple[Path, dict[str, tuple[Tensor, Tensor]]]:
    """Adapters of rank 3 of every linear layer that LiveAvatar trains; the file tells no alpha."""
    torch.manual_seed(seed)
    pairs = {}
    for name, shape in expected_shapes(BASE).items():
        module, kind = name.rpartition(".")[0], name.rpartition(".")[2]
        trained = module.endswith((".q", ".k", ".v", ".o", ".ffn.0", ".ffn.2"))
        if trained and kind == "weight":
            pairs[module] = (0.1 * torch.randn(3, shape[1]), 0.1 * torch.randn(shape[0], 3))
    held = {}
    for module, (a, b) in pairs.items():
        held[f"base_model.model.{module}.lora_A.weight"] = a
        held[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(held, file)
    return file, pairs


class Published:
    """The forward pass of the published code over one stretch of video, for a batch of one."""

    def __init__(self, weights: Mapping[str, Tensor], config: DitConfig) -> None:
        self.weights, self.config = weights, config

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.config.heads, -1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], eps=1e-6)

    def audio(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of embeddings [T, states, width] from the start: global [F, M], local [F, 5, M].

        As published: the first embedding is repeated 73 times in front, and what 19 latents heard
        of that is cut off again.
        """
        features = torch.cat([features[:1].expand(73, -1, -1), features])
        shares = F.silu(self.weights["casual_audio_encoder.weights"]).view(1, -1, 1)
        x = (features * shares).sum(1) / shares.sum()  # [T, width]
        local = self._conv("conv1_local", x.T[None])
        parts = local.view(4, -1, local.shape[-1])
        tokens = torch.cat([self._rest(part[None]) for part in parts]).transpose(0, 1)  # [F, 4, M]
        padding = self.weights["casual_audio_encoder.encoder.padding_tokens"][0].expand(
            len(tokens), -1, -1
        )
        whole = self._rest(self._conv("conv1_global", x.T[None]))[0]
        whole = self.linear("casual_audio_encoder.encoder.final_linear", whole)
        return whole[19:], torch.cat([tokens, padding], 1)[19:]

    def _rest(self, x: Tensor) -> Tensor:
        """[1, c, T] → [1, F, M]."""
        for conv in ("conv2", "conv3"):
            x = self._conv(conv, self._act(x), stride=2)
        return self._act(x).transpose(1, 2)

    def _act(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return F.silu(F.layer_norm(x, x.shape[-1:], eps=1e-6)).transpose(1, 2)

    def _conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        full = f"casual_audio_encoder.encoder.{name}.conv"
        x = F.pad(x, (2, 0), mode="replicate")
        return F.conv1d(x, self.weights[f"{full}.weight"], self.weights[f"{full}.bias"], stride)

    def context(self, text: Tensor) -> Tensor:
        padded = torch.cat([text, text.new_zeros(512 - len(text), text.shape[1])])
        return self.linear(
            "text_embedding.2", F.gelu(self.linear("text_embedding.0", padded), approximate="tanh")
        )

    def times(self, level: float) -> tuple[Tensor, Tensor]:
        """The six modulations of blocks [6, M], and the head's [M]."""
        angles = 1000 * level * 10_000 ** (-torch.arange(128, dtype=torch.float64) / 128)
        x = torch.cat([angles.cos(), angles.sin()]).float()
        e = self.linear("time_embedding.2", F.silu(self.linear("time_embedding.0", x)))
        return self.linear("time_projection.1", F.silu(e)).view(6, -1), e

    def patches(self, name: str, x: Tensor, size: tuple[int, int, int]) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv3d(x[None], weight, bias, stride=size)[0].flatten(1).T

    def reference(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the picture [C, 1, h, w] and of nineteen frames before, and their positions."""
        mask, side = self.weights["trainable_cond_mask.weight"], picture.shape[-1] // 2
        first = self.config.positions.anchor - 30
        tokens = [self.patches("patch_embedding", picture, (1, 2, 2)) + mask[1]]
        places = [([30], side, 1)]
        if self.config.reference is not None and self.config.reference.motion == "still":
            frames = picture.expand(-1, 19, -1, -1)
            for name, size, piece in (
                ("proj", (1, 2, 2), frames[:, 18:]),
                ("proj_2x", (2, 4, 4), frames[:, 16:18]),
                ("proj_4x", (4, 8, 8), frames[:, :16]),
            ):
                tokens.append(self.patches(f"frame_packer.{name}", piece, size) + mask[2])
            places += [([-1], side, 1), ([-3], side // 2, 2), ([-19, -14, -9, -4], side // 4, 4)]
        turns = []
        for frame_list, count, _ in places:
            spread = torch.linspace(0, side - 1, count).int().tolist()
            frames_at = [first + frame for frame in frame_list]
            turns.append(table(self.config.head_dim, frames=frames_at, rows=spread, columns=spread))
        return torch.cat(tokens), torch.cat(turns, 1)

    def run(
        self,
        x: Tensor,
        rope: Tensor,
        level: float,
        text: Tensor,
        past: Sequence[tuple[Tensor, Tensor]],
        heard: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Tokens [L, M] through all blocks, and each layer's own keys and values [L, H, D]."""
        modulations, own = self.times(level)[0], []
        described = self.context(text)
        for layer in range(self.config.layers):
            block = f"blocks.{layer}"
            e = self.weights[f"{block}.modulation"][0] + modulations
            y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + e[1]) + e[0]
            q = self.norm(f"{block}.self_attn.norm_q", self.linear(f"{block}.self_attn.q", y))
            k = self.norm(f"{block}.self_attn.norm_k", self.linear(f"{block}.self_attn.k", y))
            v = self.heads(self.linear(f"{block}.self_attn.v", y))
            q, k = _turned(self.heads(q), rope), _turned(self.heads(k), rope)
            own.append((k, v))
            earlier = past[layer] if past else (k[:0], v[:0])
            keys, values = torch.cat([earlier[0], k]), torch.cat([earlier[1], v])
            x = x + self.linear(f"{block}.self_attn.o", _attention(q, keys, values)) * e[2]
            y = F.layer_norm(
                x, x.shape[-1:], self.weights[f"{block}.norm3.weight"],
                self.weights[f"{block}.norm3.bias"], eps=1e-6,
            )  # fmt: skip
            x = x + self.asked(f"{block}.cross_attn", y, described)
            y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + e[4]) + e[3]
            y = F.gelu(self.linear(f"{block}.ffn.0", y), approximate="tanh")
            x = x + self.linear(f"{block}.ffn.2", y) * e[5]
            if heard is not None and layer in LAYERS:
                x = x + self.injected(LAYERS.index(layer), x, *heard)
        return x, own

    def injected(self, place: int, x: Tensor, whole: Tensor, tokens: Tensor) -> Tensor:
        dim = x.shape[-1]
        adain = AdaLayerNorm(output_dim=2 * dim, embedding_dim=dim, chunk_dim=1)
        name = f"audio_injector.injector_adain_layers.{place}.linear"
        adain.linear.load_state_dict(
            {part: self.weights[f"{name}.{part}"] for part in ("weight", "bias")}
        )
        frames = x.view(len(whole), -1, dim)
        styled = adain(frames, temb=whole)
        injector = f"audio_injector.injector.{place}"
        answers = [
            self.asked(injector, own, said) for own, said in zip(styled, tokens, strict=True)
        ]
        return torch.cat(answers)

    def asked(self, name: str, x: Tensor, known: Tensor) -> Tensor:
        q = self.heads(self.norm(f"{name}.norm_q", self.linear(f"{name}.q", x)))
        k = self.heads(self.norm(f"{name}.norm_k", self.linear(f"{name}.k", known)))
        v = self.heads(self.linear(f"{name}.v", known))
        return self.linear(f"{name}.o", _attention(q, k, v))

    def drawn(self, x: Tensor) -> Tensor:
        """Tokens of latents [C, F, h, w] being drawn; the absent pose is all zeros."""
        tokens = self.patches("patch_embedding", x, (1, 2, 2))
        tokens = tokens + self.weights["trainable_cond_mask.weight"][0]
        if self.config.reference is not None and self.config.reference.pose:
            tokens = tokens + self.patches("cond_encoder", torch.zeros_like(x), (1, 2, 2))
        return tokens

    def head(self, x: Tensor, level: float, shape: torch.Size) -> Tensor:
        shift, scale = self.weights["head.modulation"][0] + self.times(level)[1]
        x = self.linear("head.head", F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        c, f, h, w = shape
        return x.view(f, h // 2, w // 2, 2, 2, c).permute(5, 0, 1, 3, 2, 4).reshape(shape)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("lhd,mhd->hlm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hlm,mhd->lhd", scores.softmax(-1), v).flatten(1)


def _turned(x: Tensor, rope: Tensor) -> Tensor:
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = torch.view_as_complex(pairs) * torch.complex(*rope)
    return torch.view_as_real(turned).flatten(-2)
