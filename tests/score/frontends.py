"""Small front ends with random weights, and speech-like sound, for the tests of this folder."""

from typing import Any

import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from services.score.frontend.config import MelFrontEnd, Wav2Vec2FrontEnd
from services.score.frontend.features import FrontEnd
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.frontend.wav2vec import Wav2Vec

SMALL = MelFrontEnd(width=16)
WINDOWED = Wav2Vec2FrontEnd(states="last", left=6, right=3, block=4)


def network(*, stable: bool = False) -> Any:
    """A wav2vec 2.0 of the public shape (strides, kernels), a few thousand times smaller."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=stable,
        feat_extract_norm="layer" if stable else "group",
    )
    return Wav2Vec2Model(config).eval().requires_grad_(False)


def front_end(config: MelFrontEnd | Wav2Vec2FrontEnd) -> FrontEnd:
    torch.manual_seed(1)
    if isinstance(config, Wav2Vec2FrontEnd):
        return Wav2Vec(network(), config)
    encoder = SpeechEncoder(config).requires_grad_(False)
    encoder.offset.normal_()
    encoder.scale.uniform_(0.5, 2)
    return encoder


def pieces(clip: Tensor, size: int) -> list[Tensor]:
    """A clip [streams, samples] in pieces of `size` samples; the last may be shorter."""
    return [clip[:, at : at + size] for at in range(0, clip.shape[1], size)]


def speech(samples: int, *, streams: int = 1, seed: int = 0) -> Tensor:
    """Noise under a slow envelope, float32 [streams, samples]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16_000
    envelope = torch.sin(2 * torch.pi * 2.5 * time).clamp(min=0)
    return 0.3 * envelope * torch.randn(streams, samples, generator=generator).clamp(-3, 3)
