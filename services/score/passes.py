"""The three passes, anchor → context → denoise, for training and streaming alike.

Between `model.py` and everything that runs it. Each pass hands its keys and values on through its
`Memory`, and that is all there is to sparse causality:

    anchor   sees itself, and nobody speaks on it     position 0
    context  sees the anchor and itself (policy `own`; `window` also earlier chunks)
    denoise  sees the anchor, the finished chunk before and itself

Positions belong to roles, so chunk 100,000 looks to the model like chunk 1.

Legend: B batch, C latent channels, F latent frames of a chunk, h and w rows and columns of a
latent, S speakers, N tokens of a frame, L tokens of a pass, K chunks of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.score.attention import KeysValues, Memory
from services.score.cache import Handed
from services.score.config import AnchorConfig, DitConfig
from services.score.model import Dit, Given, Times
from services.score.reference import packed_places
from services.score.rope import shift, table


@dataclass(frozen=True, slots=True)
class Scene:
    """What every pass over some avatars shares. Rows of a batch may be different avatars."""

    anchor: Tensor  # [B, C, 1, h, w] clean latent of the reference picture
    given: Sequence[Given]  # per layer: text and picture, without audio
    faces: Tensor | None  # [B, S, N]; None for a model without audio

    def repeat(self, times: int) -> Scene:
        """Every row `times` times, one after another."""
        return Scene(
            anchor=self.anchor.repeat_interleave(times, 0),
            given=[
                Given(*(None if kv is None else _repeated(kv, times) for kv in layer))
                for layer in self.given
            ],
            faces=None if self.faces is None else self.faces.repeat_interleave(times, 0),
        )


class Places:
    """Rotary tables by role, for all rows of tokens or a band of them."""

    def __init__(self, config: DitConfig, device: torch.device, band: range | None = None) -> None:
        rows, columns = config.grid
        band = band if band is not None else range(rows)

        def at(first: int, count: int) -> Tensor:
            frames = range(first, first + count)
            return table(config.head_dim, frames=frames, rows=band, columns=range(columns)).to(
                device
            )

        frames, where, context = config.stream.latents_per_chunk, config.positions, config.context
        passed = where.context if context.policy == "own" else where.own
        self.anchor = at(where.anchor, 1)
        if config.anchor_tokens > config.frame_tokens:
            self.anchor = torch.cat([self.anchor, packed_places(config, band).to(device)], 1)
        self.own = at(where.own, frames)
        self.context = at(passed, frames)  # of the context pass
        # Where a finished chunk is seen, newest first, less where its own pass put it.
        newest = where.context + (context.chunks - 1) * frames
        moves = [newest - age * frames - passed for age in range(context.chunks)]
        self.moves = [shift(config.head_dim, by).to(device) if by else None for by in moves]


class Passes:
    """A model with its positions, ready to be run pass by pass."""

    def __init__(self, model: Dit, places: Places) -> None:
        self.model = model
        self.places = places

    def anchor(self, scene: Scene, times: Times, memory: Sequence[Memory]) -> None:
        """Leave the anchor's keys and values in `memory`; `times` of level 0."""
        config = self.model.config
        audio = None
        if config.audio is not None:
            assert scene.faces is not None, "a model with audio needs faces"
            rows, speakers = scene.faces.shape[:2]
            one = self.model.hear_nothing()
            audio = one and [
                KeysValues(*(x.expand(rows, speakers, *x.shape[2:]) for x in kv)) for kv in one
            ]
        x = input_channels(config.anchor, scene.anchor, scene.anchor, on_anchor=True)
        self._run(x, times, self.places.anchor, scene, audio, memory, on_anchor=True)

    def context(
        self,
        clean: Tensor,
        scene: Scene,
        times: Times,
        audio: Sequence[KeysValues] | None,
        memory: Sequence[Memory],
    ) -> None:
        """Leave the keys and values of a finished chunk [B, C, F, h, w] in `memory`."""
        x = input_channels(self.model.config.anchor, clean, scene.anchor, on_anchor=False)
        self._run(x, times, self.places.context, scene, audio, memory)

    def denoise(
        self,
        noisy: Tensor,
        scene: Scene,
        times: Times,
        audio: Sequence[KeysValues] | None,
        memory: Sequence[Memory],
    ) -> Tensor:
        """The model's prediction for a noisy chunk: [B, C, F, h, w] float32."""
        x = input_channels(self.model.config.anchor, noisy, scene.anchor, on_anchor=False)
        return self._run(x, times, self.places.own, scene, audio, memory)

    def _run(
        self,
        x: Tensor,
        times: Times,
        rope: Tensor,
        scene: Scene,
        audio: Sequence[KeysValues] | None,
        memory: Sequence[Memory],
        *,
        on_anchor: bool = False,
    ) -> Tensor:
        given = scene.given
        if audio is not None:
            given = [
                known._replace(audio=speech) for known, speech in zip(given, audio, strict=True)
            ]
        x = x.to(self.model.patch_embedding.weight.dtype)
        prediction: Tensor = self.model(
            x,
            times,
            rope,
            given=given,
            memory=memory,
            faces=scene.faces,
            on_anchor=on_anchor,
        )
        return prediction


def clip(
    passes: Passes,
    scene: Scene,
    *,
    clean: Tensor,
    noisy: Tensor,
    level: Tensor,
    audio: Sequence[KeysValues] | None,
    context_gradient: bool = True,
) -> Tensor:
    """Predictions for all chunks of a clip at once, with the visibility that streaming has.

    Args:
        clean: finished chunks [B, K, C, F, h, w]; the last one is not looked at.
        noisy: the same chunks at `level` [B], one level for all chunks of a clip.
        audio: per layer, keys and values of speech of all chunks, [B·K, S, F, ...].
        context_gradient: whether gradients flow into the anchor and context passes.

    Returns:
        [B, K, C, F, h, w] float32.
    """
    rows, chunks = noisy.shape[:2]
    times = passes.model.embed_time
    with torch.set_grad_enabled(context_gradient and torch.is_grad_enabled()):
        anchors = [Handed() for _ in scene.given]
        passes.anchor(scene, times(level.new_zeros(1)), anchors)
        contexts = _contexts(passes, scene, clean[:, :-1], audio, anchors) if chunks > 1 else []
    first = passes.denoise(
        noisy[:, 0],
        scene,
        times(level),
        _chunks(audio, rows, slice(0, 1)),
        [Handed(_own(layer, 1)) for layer in anchors],
    )
    if chunks == 1:
        return first[:, None]
    rest = passes.denoise(
        noisy[:, 1:].flatten(0, 1),
        scene.repeat(chunks - 1),
        times(level.repeat_interleave(chunks - 1)),
        _chunks(audio, rows, slice(1, None)),
        [
            Handed(_own(anchor, chunks - 1), _own(context, 1))
            for anchor, context in zip(anchors, contexts, strict=True)
        ],
    )
    rest = rest.view(rows, chunks - 1, *rest.shape[1:])
    return torch.cat([first[:, None], rest], 1)


def _contexts(
    passes: Passes,
    scene: Scene,
    clean: Tensor,
    audio: Sequence[KeysValues] | None,
    anchors: Sequence[Handed],
) -> list[Handed]:
    """What the context passes of chunks [B, K, C, F, h, w] leave, all chunks as rows of a batch."""
    context, (rows, chunks) = passes.model.config.context, clean.shape[:2]
    assert context.policy == "own", "only chunks that see no other chunk can be passed at once"
    layers = [Handed(_own(layer, chunks)) for layer in anchors]
    passes.context(
        clean.flatten(0, 1),
        scene.repeat(chunks),
        passes.model.embed_time(clean.new_full((1,), context.level)),
        _chunks(audio, rows, slice(0, -1)),
        layers,
    )
    return layers


def input_channels(
    config: AnchorConfig | None, x: Tensor, anchor: Tensor, *, on_anchor: bool
) -> Tensor:
    """What the model is fed: latents [B, C, F, h, w], then mask and picture if it wants them."""
    if config is None:
        return x
    mask = x.new_full((len(x), config.mask_channels, *x.shape[2:]), float(on_anchor))
    shown = on_anchor or config.fill == "anchor"
    picture = anchor.expand_as(x) if shown else torch.zeros_like(x)
    return torch.cat([x, mask, picture.type_as(x)], 1)


def _own(layer: Handed, times: int) -> KeysValues:
    """What `layer`'s pass left, every row `times` times."""
    assert layer.own is not None, "no pass has run"
    return _repeated(layer.own, times)


def _repeated(kv: KeysValues, times: int) -> KeysValues:
    return KeysValues(kv.k.repeat_interleave(times, 0), kv.v.repeat_interleave(times, 0))


def _chunks(audio: Sequence[KeysValues] | None, rows: int, which: slice) -> list[KeysValues] | None:
    """Speech of some chunks of every row: [B·K, ...] → [B·k, ...]."""
    if audio is None:
        return None

    def pick(x: Tensor) -> Tensor:
        return x.view(rows, -1, *x.shape[1:])[:, which].flatten(0, 1)

    return [KeysValues(pick(kv.k), pick(kv.v)) for kv in audio]
