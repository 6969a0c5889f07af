"""The transformer agrees with diffusers' independent one on the same random weights."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from services.score.attention import KeysValues
from services.score.config import AnchorConfig, ClipConfig, DitConfig, StreamConfig, TextConfig
from services.score.model import Dit
from services.score.rope import table

# (diffusers' name, Wan2.1's name), applied in order to every key.
_RENAMED = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("attn1", "self_attn"),
    ("attn2", "cross_attn"),
    ("to_out.0", "o"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("add_k_proj", "k_img"),
    ("add_v_proj", "v_img"),
    ("norm_added_k", "norm_k_img"),
    ("norm2", "norm3"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("proj_out", "head.head"),
)


class Alone:
    """A memory that remembers nothing: a bidirectional pass."""

    def extend(self, k: Tensor, v: Tensor) -> KeysValues:
        return KeysValues(k, v)


def renamed(key: str) -> str:
    for theirs, ours in _RENAMED:
        key = key.replace(theirs, ours)
    if key == "scale_shift_table":
        return "head.modulation"
    return key.replace("scale_shift_table", "modulation")


@pytest.mark.parametrize("clip", [None, ClipConfig(dim=24, tokens=7)], ids=["t2v", "i2v"])
def test_same_weights_same_prediction(clip: ClipConfig | None) -> None:
    torch.manual_seed(3)
    config = DitConfig(
        dim=96,
        ffn_dim=160,
        heads=4,
        layers=3,
        freq_dim=32,
        text=TextConfig(dim=20, tokens=512),
        clip=clip,
        anchor=AnchorConfig() if clip else None,
        stream=StreamConfig(width=96, height=64),
    )
    theirs = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=config.in_channels,
        out_channels=16,
        text_dim=20,
        freq_dim=32,
        ffn_dim=160,
        num_layers=3,
        image_dim=clip.dim if clip else None,
        added_kv_proj_dim=96 if clip else None,
    )
    ours = Dit(config)
    weights = {
        renamed(key): torch.randn_like(value) * 0.12 for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(weights)
    theirs.load_state_dict({key: weights[renamed(key)] for key in theirs.state_dict()})

    x = torch.randn(2, config.in_channels, 5, 8, 12)
    level = torch.tensor([0.75, 0.2])
    text = torch.randn(2, 512, 20)
    picture = torch.randn(2, clip.tokens, clip.dim) if clip else None
    rope = table(config.head_dim, frames=range(5), rows=range(4), columns=range(6))
    with torch.inference_mode():
        expected = theirs(x, 1000 * level, text, picture, return_dict=False)[0]
        got = ours(
            x,
            ours.embed_time(level),
            rope,
            given=ours.describe(text, picture),
            memory=[Alone()] * 3,
        )
    assert expected.abs().max() > 0.5, "weights too small to tell anything"
    assert (got - expected).abs().max() <= 1e-4
