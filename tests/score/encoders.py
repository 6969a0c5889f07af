"""Small encoders in the files of a Wan repository, with a tokenizer that knows a few words."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from services.score.encoders import clip
from services.score.encoders import umt5 as umt5_file
from services.score.encoders.prompts import FOLDER

TEXT, PICTURE, TOKENS = 24, 80, 10
_WORDS = ["<pad>", "</s>", "<unk>", "a", "woman", "talks", "she", "listens"]
_LAYERS = 2


def write(folder: Path, *, picture: tuple[int, int, int] = (PICTURE, TOKENS, 4)) -> Path:
    """All that a Wan image-to-video repository has for prompts and pictures.

    Args:
        picture: width, tokens and pixels per side of a patch of the picture encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(umt5(), folder / umt5_file.FILE)
    torch.save(clip_vision(*picture), folder / clip.FILE)
    (folder / FOLDER).mkdir(parents=True)
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(_WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / FOLDER / "tokenizer.json"))
    return folder


def umt5() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (len(_WORDS), TEXT),
        "norm.weight": (TEXT,),
    }
    for layer in range(_LAYERS):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.attn.{part}.weight": (16, TEXT) for part in "qkv"}
        shapes |= {
            f"{block}.attn.o.weight": (TEXT, 16),
            f"{block}.norm1.weight": (TEXT,),
            f"{block}.norm2.weight": (TEXT,),
            f"{block}.pos_embedding.embedding.weight": (32, 2),
            f"{block}.ffn.gate.0.weight": (20, TEXT),
            f"{block}.ffn.fc1.weight": (20, TEXT),
            f"{block}.ffn.fc2.weight": (TEXT, 20),
        }
    return _random(shapes, dtype=torch.bfloat16)


def clip_vision(width: int = PICTURE, tokens: int = TOKENS, patch: int = 4) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "visual.cls_embedding": (1, 1, width),
        "visual.pos_embedding": (1, tokens, width),
        "visual.patch_embedding.weight": (width, 3, patch, patch),
        "visual.head": (width, 6),
        "textual.head.weight": (6, 6),
        "log_scale": (),
    }
    pairs: dict[str, tuple[int, ...]] = {"pre_norm": (width,), "post_norm": (width,)}
    for layer in range(_LAYERS):
        block = f"transformer.{layer}"
        pairs |= {f"{block}.norm{n}": (width,) for n in (1, 2)}
        pairs |= {
            f"{block}.attn.to_qkv": (3 * width, width),
            f"{block}.attn.proj": (width, width),
            f"{block}.mlp.0": (12, width),
            f"{block}.mlp.2": (width, 12),
        }
    for name, shape in pairs.items():
        shapes |= {f"visual.{name}.weight": shape, f"visual.{name}.bias": shape[:1]}
    return _random(shapes)


def _random(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        name: (0.3 * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in shapes.items()
    }
