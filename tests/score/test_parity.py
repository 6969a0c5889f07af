"""The transformer agrees with diffusers' independent one on the same random weights."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from services.score.attention import KeysValues
from services.score.checkpoint.layouts import from_diffusers
from services.score.config import AnchorConfig, ClipConfig, DitConfig, StreamConfig, TextConfig
from services.score.model import Dit
from services.score.rope import table


class Alone:
    """A memory that remembers nothing: a bidirectional pass."""

    def extend(self, k: Tensor, v: Tensor) -> KeysValues:
        return KeysValues(k, v)


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
        from_diffusers(key): torch.randn_like(value) * 0.12
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(weights)
    theirs.load_state_dict({key: weights[from_diffusers(key)] for key in theirs.state_dict()})

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
