"""Prompts as token numbers, by the tokenizer that the Wan repositories ship (`google/umt5-xxl`).

First station of a prompt: **prompts** → umt5. `tokenizers` reads `tokenizer.json` alone, a local
file; it is an optional dependency (`encoders`).
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.runtime.weights import BadCheckpoint

FOLDER = Path("google/umt5-xxl")
TOKENIZER = FOLDER / "tokenizer.json"


class Prompts:
    """Turns text into tokens, at most `most` of them with the one that ends it."""

    def __init__(self, folder: Path, *, most: int) -> None:
        """Raises BadCheckpoint when the tokenizer is absent, unreadable or cannot be read here."""
        file = folder / TOKENIZER.name
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            why = "prompts need the package tokenizers: pip install 'talkingmachines[encoders]'"
            raise BadCheckpoint(str(file), why=why) from error
        if not file.is_file():
            raise BadCheckpoint(str(file), why="the tokenizer of the text encoder is absent")
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(file))
        except Exception as error:  # what the library raises of a damaged file has no class
            why = f"not a readable tokenizer ({type(error).__name__})"
            raise BadCheckpoint(str(file), why=why) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(most)

    @property
    def words(self) -> int:
        """Tokens that there are."""
        count: int = self._tokenizer.get_vocab_size()
        return count

    def tokens(self, prompt: str) -> Tensor:
        """[L] int64, L at least 1."""
        return torch.tensor(self._tokenizer.encode(cleaned(prompt)).ids)


def cleaned(prompt: str) -> str:
    """As the published code does: entities resolved twice, white space collapsed."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
