"""The encoders of an avatar's conditioning: equal to transformers', or refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.tensors import Stored, Weights
from services.score.config import ClipConfig, DitConfig, TextConfig
from services.score.encoders.clip import ClipVision
from services.score.encoders.conditioning import Encoders
from services.score.encoders.prompts import Prompts, cleaned
from services.score.encoders.umt5 import Umt5
from tests.score import encoders
from tests.score.checkpoints import CPU


def stored(tensors: dict[str, Tensor]) -> Weights:
    return {name: Stored(tuple(t.shape), t.dtype, t.to) for name, t in tensors.items()}


@torch.no_grad()
def test_umt5_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    theirs = UMT5EncoderModel(
        UMT5Config(
            vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    state = theirs.state_dict()
    names = {
        "shared.weight": "token_embedding.weight",
        "encoder.final_layer_norm.weight": "norm.weight",
    }
    for layer in range(3):
        block = f"encoder.block.{layer}.layer"
        attention = f"{block}.0.SelfAttention"
        names |= {
            f"{attention}.{part}.weight": f"blocks.{layer}.attn.{part}.weight" for part in "qkvo"
        }
        bias = f"{attention}.relative_attention_bias.weight"
        names[bias] = f"blocks.{layer}.pos_embedding.embedding.weight"
        names[f"{block}.0.layer_norm.weight"] = f"blocks.{layer}.norm1.weight"
        names[f"{block}.1.layer_norm.weight"] = f"blocks.{layer}.norm2.weight"
        dense = f"{block}.1.DenseReluDense"
        names[f"{dense}.wi_0.weight"] = f"blocks.{layer}.ffn.gate.0.weight"
        names[f"{dense}.wi_1.weight"] = f"blocks.{layer}.ffn.fc1.weight"
        names[f"{dense}.wo.weight"] = f"blocks.{layer}.ffn.fc2.weight"
    ours = Umt5("small", stored({ours: state[name] for name, ours in names.items()}))
    # Longer than every distance that has a bucket of its own.
    prompts = [torch.randint(50, (length,)) for length in (1, 7, 200)]
    for prompt, got in zip(prompts, ours.encode(prompts, device=CPU), strict=True):
        expected = theirs(prompt[None]).last_hidden_state[0]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_clip_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    theirs = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=160, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
            image_size=42, patch_size=14, hidden_act="gelu",
        )
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    state = {name.removeprefix("vision_model."): w for name, w in theirs.state_dict().items()}
    embeddings = "embeddings."
    tensors = {
        "cls_embedding": state[f"{embeddings}class_embedding"][None, None],
        "pos_embedding": state[f"{embeddings}position_embedding.weight"][None],
        "patch_embedding.weight": state[f"{embeddings}patch_embedding.weight"],
        "head": torch.zeros(160, 8),
    }
    norms = {"pre_layrnorm": "pre_norm", "post_layernorm": "post_norm"}
    for layer in range(3):
        block, to = f"encoder.layers.{layer}", f"transformer.{layer}"
        norms |= {f"{block}.layer_norm{n}": f"{to}.norm{n}" for n in (1, 2)}
        norms |= {f"{block}.mlp.fc1": f"{to}.mlp.0", f"{block}.mlp.fc2": f"{to}.mlp.2"}
        norms[f"{block}.self_attn.out_proj"] = f"{to}.attn.proj"
        for kind in ("weight", "bias"):
            parts = [state[f"{block}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{to}.attn.to_qkv.{kind}"] = torch.cat(parts)
    for name, to in norms.items():
        tensors |= {f"{to}.{kind}": state[f"{name}.{kind}"] for kind in ("weight", "bias")}
    ours = ClipVision("small", stored({f"visual.{name}": w for name, w in tensors.items()}))
    picture = torch.randint(256, (42, 42, 3), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((picture / 255 - mean) / std).permute(2, 0, 1)[None]
    states = theirs(pixels, output_hidden_states=True).hidden_states
    got = ours.encode(picture, device=CPU)
    torch.testing.assert_close(got, states[-2][0], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoders.write(tmp_path_factory.mktemp("encoders"))


CONFIG = DitConfig(
    dim=8, ffn_dim=8, heads=1, layers=1,
    text=TextConfig(dim=encoders.TEXT, tokens=9),
    clip=ClipConfig(dim=encoders.PICTURE, tokens=encoders.TOKENS),
)  # fmt: skip


def test_an_avatar_is_embedded_once(folder: Path) -> None:
    made = Encoders(folder, CONFIG, device=CPU)
    picture = torch.randint(256, (16, 24, 3), dtype=torch.uint8)
    first = made.embed(picture, "a woman talks", "")
    assert first.text is not None
    assert first.text.shape == (4, encoders.TEXT)  # three words and the end
    assert first.text.dtype is torch.float16
    assert first.listening_text is None
    assert first.picture is not None
    assert first.picture.shape == (encoders.TOKENS, encoders.PICTURE)
    second = made.embed(picture, "a woman talks", "she listens " * 9)
    assert second.text is first.text, "known prompts are not encoded again"
    assert second.listening_text is not None
    assert len(second.listening_text) == 9, "cut to what the checkpoint reads"
    assert torch.equal(second.picture, first.picture)  # type: ignore[arg-type]
    other = made.embed(255 - picture, "", "")
    assert not torch.equal(other.picture, first.picture)  # type: ignore[arg-type]
    assert len(other.text) == 1  # type: ignore[arg-type]  # the end alone


def test_prompts_are_cleaned_as_published() -> None:
    assert cleaned("  a &amp;amp; b\n\tc ") == "a & b c"


def test_what_is_absent_or_other_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"umt5-xxl-enc-bf16.pth .*text encoder is absent"):
        Encoders(tmp_path, CONFIG, device=CPU)
    with pytest.raises(BadCheckpoint, match=r"embeddings of 24 numbers, the checkpoint reads 32"):
        Encoders(folder, replace(CONFIG, text=TextConfig(dim=32)), device=CPU)
    with pytest.raises(BadCheckpoint, match="tokenizer of the text encoder is absent"):
        Prompts(tmp_path, most=4)
    broken = encoders.umt5()
    del broken["blocks.1.ffn.gate.0.weight"]
    with pytest.raises(BadCheckpoint) as refused:
        Umt5("broken", stored(broken))
    assert refused.value.missing == ["blocks.1.ffn.gate.0.weight"]
    with pytest.raises(BadCheckpoint, match=r"visual\.patch_embedding\.weight"):
        ClipVision("text alone", stored({"textual.head": torch.zeros(2, 2)}))
