"""What a checkpoint must know of an avatar besides its anchor: embeddings of prompts and picture.

Above `umt5.py` and `clip.py`, below the servicer; called once when an avatar is made, on a thread
of its own. Only what the checkpoint reads is opened; nothing stays but the latest prompts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.tensors import read_file
from services.score.config import ClipConfig, DitConfig, TextConfig
from services.score.encoders import clip, umt5
from services.score.encoders.clip import ClipVision
from services.score.encoders.prompts import FOLDER, Prompts
from services.score.encoders.umt5 import Umt5

_KEPT = 64  # prompts: fleets give many avatars the same one


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """float16, on the host; None for what the checkpoint does not read."""

    text: Tensor | None = None  # [L, text.dim]
    listening_text: Tensor | None = None  # None also where it is the same prompt
    picture: Tensor | None = None  # [clip.tokens, clip.dim]


class Encoders:
    """The encoders that a checkpoint was trained with, in their files."""

    def __init__(
        self,
        folder: Path,
        config: DitConfig,
        *,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Open what `config` needs in `folder`, laid out as a Wan repository.

        Args:
            device: where they compute.
            dtype: what they compute in; that of their files if not given.

        Raises:
            BadCheckpoint: something is absent, or is not what the checkpoint was trained with.
        """
        self._device, self._dtype = device, dtype
        self._text = _text(folder, config.text) if config.text else None
        self._picture = _picture(folder, config.clip) if config.clip else None
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def embed(self, picture: Tensor, prompt: str, listening_prompt: str) -> Embeddings:
        """Of a picture [rows, columns, 3] uint8; an empty prompt for listening means the other."""
        seen = None
        if self._picture is not None:
            seen = self._picture.encode(picture, device=self._device, dtype=self._dtype).half()
        if self._text is None:
            return Embeddings(picture=seen)
        text, listening = self._prompts([prompt, listening_prompt or prompt])
        return Embeddings(text, None if listening is text else listening, seen)

    def _prompts(self, prompts: Sequence[str]) -> list[Tensor]:
        assert self._text is not None
        tokenizer, encoder = self._text
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            tokens = [tokenizer.tokens(prompt) for prompt in new]
            encoded = encoder.encode(tokens, device=self._device, dtype=self._dtype)
            self._known.update(zip(new, (text.half() for text in encoded), strict=True))
        found = [self._known[prompt] for prompt in prompts]
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found


def _text(folder: Path, text: TextConfig) -> tuple[Prompts, Umt5]:
    file = _present(folder / umt5.FILE, "text encoder")
    encoder = Umt5(str(file), read_file(file))
    if encoder.width != text.dim:
        why = f"it makes embeddings of {encoder.width} numbers, the checkpoint reads {text.dim}"
        raise BadCheckpoint(str(file), why=why)
    prompts = Prompts(folder / FOLDER, most=text.tokens)
    if prompts.words > encoder.words:
        why = f"{prompts.words} tokens, of which the text encoder knows {encoder.words}"
        raise BadCheckpoint(str(folder / FOLDER), why=why)
    return prompts, encoder


def _picture(folder: Path, config: ClipConfig) -> ClipVision:
    file = _present(folder / clip.FILE, "picture encoder")
    encoder = ClipVision(str(file), read_file(file))
    got, expected = (encoder.tokens, encoder.width), (config.tokens, config.dim)
    if got != expected:
        why = f"it makes {list(got)} numbers of a picture, the checkpoint reads {list(expected)}"
        raise BadCheckpoint(str(file), why=why)
    return encoder


def _present(file: Path, what: str) -> Path:
    if not file.is_file():
        raise BadCheckpoint(str(file), why=f"the {what} is absent")
    return file
