"""Key names, shapes and parameter counts of the published sizes, on the meta device."""

import math
from dataclasses import replace

import pytest
import torch

from services.score.config import (
    AnchorConfig,
    AudioConfig,
    ClipConfig,
    DitConfig,
    FantasyTalkingAudio,
    MultiTalkAudio,
)
from services.score.frontend.config import Wav2Vec2FrontEnd
from services.score.model import Dit
from services.score.presets import preset

B14 = DitConfig(dim=5120, ffn_dim=13824, heads=40, layers=40)
B1_3 = DitConfig(dim=1536, ffn_dim=8960, heads=12, layers=30)


def shapes(config: DitConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Dit(config).state_dict().items()}


def parameters(config: DitConfig) -> int:
    return sum(math.prod(shape) for shape in shapes(config).values())


def wan_keys(
    dim: int, ffn: int, layers: int, channels: int, *, clip: bool
) -> dict[str, tuple[int, ...]]:
    """The published layout, written out independently of the model."""

    def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    keys = {"patch_embedding.weight": (dim, channels, 1, 2, 2), "patch_embedding.bias": (dim,)}
    keys |= linear("text_embedding.0", dim, 4096) | linear("text_embedding.2", dim, dim)
    keys |= linear("time_embedding.0", dim, 256) | linear("time_embedding.2", dim, dim)
    keys |= linear("time_projection.1", 6 * dim, dim)
    if clip:
        keys |= {"img_emb.proj.0.weight": (1280,), "img_emb.proj.0.bias": (1280,)}
        keys |= linear("img_emb.proj.1", 1280, 1280) | linear("img_emb.proj.3", dim, 1280)
        keys |= {"img_emb.proj.4.weight": (dim,), "img_emb.proj.4.bias": (dim,)}
    for n in range(layers):
        block = f"blocks.{n}"
        keys[f"{block}.modulation"] = (1, 6, dim)
        keys |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                keys |= linear(f"{block}.{attention}.{part}", dim, dim)
            for norm in ("norm_q", "norm_k"):
                keys[f"{block}.{attention}.{norm}.weight"] = (dim,)
        if clip:
            keys |= linear(f"{block}.cross_attn.k_img", dim, dim)
            keys |= linear(f"{block}.cross_attn.v_img", dim, dim)
            keys[f"{block}.cross_attn.norm_k_img.weight"] = (dim,)
        keys |= linear(f"{block}.ffn.0", ffn, dim) | linear(f"{block}.ffn.2", dim, ffn)
    keys["head.modulation"] = (1, 2, dim)
    return keys | linear("head.head", 64, dim)


def test_text_to_video_1_3b() -> None:
    assert shapes(B1_3) == wan_keys(1536, 8960, 30, 16, clip=False)
    assert round(parameters(B1_3) / 1e9, 3) == 1.419


def test_text_to_video_14b() -> None:
    assert shapes(B14) == wan_keys(5120, 13824, 40, 16, clip=False)
    assert parameters(B14) == 14_288_491_584


def test_image_to_video_14b() -> None:
    config = replace(preset("tm-18b"), audio=None)
    assert shapes(config) == wan_keys(5120, 13824, 40, 36, clip=True)
    assert round(parameters(config) / 1e9, 3) == 16.395


def test_the_papers_size() -> None:
    whole = parameters(preset("tm-18b"))
    audio = whole - parameters(replace(preset("tm-18b"), audio=None))
    assert 1.15e9 < audio < 1.25e9
    assert whole == 17_605_177_152


def with_audio(audio: AudioConfig) -> DitConfig:
    return replace(B14, clip=ClipConfig(), anchor=AnchorConfig(), audio=audio)


def test_multitalk() -> None:
    config = with_audio(
        AudioConfig(
            adapter=MultiTalkAudio(),
            front_end=Wav2Vec2FrontEnd(),
            embedding_dim=9216,
            per_latent=4,
            before=2,
            after=2,
        )
    )
    bare = shapes(replace(config, audio=None))
    audio = {name: shape for name, shape in shapes(config).items() if name not in bare}
    assert audio["audio_proj.proj1.weight"] == (512, 46080)
    assert audio["audio_proj.proj1_vf.weight"] == (512, 73728)
    assert audio["audio_proj.proj2.weight"] == (512, 512)
    assert audio["audio_proj.proj3.weight"] == (24576, 512)
    assert audio["audio_proj.norm.weight"] == (768,)
    assert audio["blocks.39.norm_x.bias"] == (5120,)
    assert audio["blocks.39.audio_cross_attn.q_linear.weight"] == (5120, 5120)
    assert audio["blocks.39.audio_cross_attn.kv_linear.weight"] == (10240, 768)
    assert audio["blocks.39.audio_cross_attn.proj.bias"] == (5120,)
    assert len(audio) == 2 * 5 + 40 * 8
    assert round(sum(map(math.prod, audio.values())) / 1e9, 3) == 2.487


def test_fantasytalking() -> None:
    config = with_audio(
        AudioConfig(
            adapter=FantasyTalkingAudio(),
            front_end=Wav2Vec2FrontEnd(states="last"),
            embedding_dim=768,
            per_latent=8,
            before=4,
            after=5,
        )
    )
    bare = shapes(replace(config, audio=None))
    audio = {name: shape for name, shape in shapes(config).items() if name not in bare}
    assert config.audio is not None
    assert config.audio.window == 17
    assert audio["audio_proj.proj.weight"] == (2048, 768)
    assert audio["audio_proj.norm.weight"] == (2048,)
    assert audio["blocks.0.cross_attn.processor.k_proj.weight"] == (5120, 2048)
    assert len(audio) == 3 + 40 * 2
    assert round(sum(map(math.prod, audio.values())) / 1e9, 2) == 0.84


@pytest.mark.parametrize("name", ["tm-1.3b", "tiny"])
def test_small_presets_are_small(name: str) -> None:
    assert parameters(preset(name)) < {"tm-1.3b": 1.8e9, "tiny": 12e6}[name]
