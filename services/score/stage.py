"""Where the sessions of a batch stand while a pass runs: fixed memory, one row each.

Between `cache.py` and `worker.py`. Recorded steps read and write this memory in place, so it is
made once; sessions come and go in its rows. What an avatar needs is laid into a row only when
another one stood there before.

Legend: Y layers, H heads of the model, D head size, N tokens of a frame (of a band, when several
ranks share a picture), S speakers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.score.attention import KeysValues
from services.score.cache import Tape, Window
from services.score.config import DitConfig
from services.score.model import Given
from services.score.passes import Scene


@dataclass(frozen=True, slots=True)
class Portrait:
    """An avatar's part of every pass, on the device."""

    digest: str
    anchor: Tensor  # [1, C, 1, h, w] float32, the band's rows
    tape: Tape  # the anchor's keys and values, the rank's heads
    speaking: list[Given]  # per layer, one row
    listening: list[Given]  # the same object when there is one prompt
    faces: Tensor | None  # [1, S, N]

    @property
    def speakers(self) -> int:
        return 0 if self.faces is None else self.faces.shape[1]

    @property
    def nbytes(self) -> int:
        prompts = (
            [self.speaking] if self.listening is self.speaking else [self.speaking, self.listening]
        )
        texts = sum(_nbytes(given.text) for prompt in prompts for given in prompt)
        pictures = sum(_nbytes(given.image) for given in self.speaking)
        return self.tape.nbytes + texts + pictures + self.anchor.nbytes


class Stage:
    """Rows for up to `rows` sessions."""

    def __init__(
        self,
        config: DitConfig,
        *,
        rows: int,
        ranks: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`ranks` share the heads of self-attention and the rows of the picture."""
        # Where every noise level sees keys and values of its own, one for each.
        self.windows = [
            Window(config, rows=rows, heads=config.heads // ranks, device=device, dtype=dtype)
            for _ in range(config.windows)
        ]
        height, width = config.latent_size
        shape = (rows, config.latent.channels, 1, height // ranks, width)
        self._anchor = torch.zeros(shape, device=device)
        self._tokens = config.frame_tokens // ranks
        self._dtype = dtype

        def empty(tokens: int) -> KeysValues:
            keys = torch.zeros(
                rows, tokens, config.heads, config.head_dim, device=device, dtype=dtype
            )
            return KeysValues(keys, torch.zeros_like(keys))

        self._given = [
            Given(
                text=empty(config.text.tokens) if config.text else None,
                image=empty(config.clip.tokens) if config.clip else None,
            )
            for _ in range(config.layers)
        ]
        self._faces: dict[int, Tensor] = {}  # by number of speakers
        self._seated: list[tuple[str, bool] | None] = [None] * rows

    def seat(self, row: int, portrait: Portrait, *, listening: bool) -> None:
        """Let an avatar's session stand in `row`, under the prompt for what it does."""
        if self._seated[row] == (portrait.digest, listening):
            return
        self._seated[row] = (portrait.digest, listening)
        for window in self.windows:
            window.put_anchor(row, portrait.tape)
        self._anchor[row] = portrait.anchor[0]
        if portrait.faces is not None:
            self._faces_for(portrait.speakers)[row] = portrait.faces[0]
        prompt = portrait.listening if listening else portrait.speaking
        for rows, given in zip(self._given, prompt, strict=True):
            _put(rows.text, row, given.text)
            _put(rows.image, row, given.image)

    def scene(self, rows: int, speakers: int) -> Scene:
        """What the first `rows` rows are, in place."""
        return Scene(
            anchor=self._anchor[:rows],
            given=[
                Given(_first(given.text, rows), _first(given.image, rows)) for given in self._given
            ],
            faces=self._faces_for(speakers)[:rows] if speakers else None,
        )

    def _faces_for(self, speakers: int) -> Tensor:
        if speakers not in self._faces:
            shape = (len(self._anchor), speakers, self._tokens)
            self._faces[speakers] = torch.zeros(
                shape, device=self._anchor.device, dtype=self._dtype
            )
        return self._faces[speakers]


def _put(rows: KeysValues | None, row: int, one: KeysValues | None) -> None:
    if rows is not None and one is not None:
        rows.k[row], rows.v[row] = one.k[0], one.v[0]


def _first(kv: KeysValues | None, rows: int) -> KeysValues | None:
    return None if kv is None else KeysValues(kv.k[:rows], kv.v[:rows])


def _nbytes(kv: KeysValues | None) -> int:
    return 0 if kv is None else kv.k.nbytes + kv.v.nbytes
