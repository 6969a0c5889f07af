"""wav2vec 2.0 as a front end (Baevski et al., arXiv 2006.11477), from local weights.

The network attends in both directions over all that it hears, so it is not causal: a stream is cut
into blocks on a grid from sample 0, and every block is heard in a window of its own with context on
both sides. Blocks are independent of each other: where a stream is entered makes no difference.

Legend: B streams, W samples of a window, n features, L layers, D hidden width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_never

import torch
from einops import rearrange
from torch import Tensor, nn

from services.runtime.weights import BadCheckpoint
from services.score.frontend.config import Wav2Vec2FrontEnd
from services.score.frontend.features import AudioState
from services.score.frontend.pcm import finite_samples

_AT_ONCE = 16  # windows in one call: a long clip must not need memory for all of them
# Silence stays silence: noise below -50 dB of full scale is not blown up to speech.
_QUIETEST = 10 ** (-50 / 20)


class Wav2Vec(nn.Module):
    """A `FrontEnd` of 16 kHz around a `transformers.Wav2Vec2Model` without adapter."""

    def __init__(self, network: nn.Module, config: Wav2Vec2FrontEnd) -> None:
        super().__init__()
        # Typed as nothing in particular: transformers is imported only where weights are loaded.
        self.network: Any = network.eval()
        self.config = config
        extractor: Any = self.network.feature_extractor
        extractor.register_forward_hook(_thinned(config.every))

    @property
    def feature_shape(self) -> tuple[int, ...]:
        width, layers = self.network.config.hidden_size, self.network.config.num_hidden_layers
        match self.config.states:
            case "last":
                return (width,)
            case "transformer":
                return (layers, width)
            case "all":
                return (layers + 1, width)
            case _:
                assert_never(self.config.states)

    def start(self, at: int, *, streams: int = 1) -> AudioState:
        # The first block whose window begins at `at` or later.
        first = -(-(at + self.config.left_samples) // (self.config.block * self.config.hop))
        return AudioState(at, first * self.config.block, (self._zeros(streams, 0),))

    def push(self, samples: Tensor, state: AudioState) -> tuple[Tensor, AudioState]:
        waiting = state.carry[0]
        heard = torch.cat([waiting, finite_samples(samples, "samples").to(waiting)], dim=1)
        sample = state.sample + samples.shape[1]
        start = sample - heard.shape[1]  # of `heard`
        windows, feature = [], state.feature
        while (last := self._window(feature)[1]) <= sample:
            first = self._window(feature)[0]
            windows.append(heard[:, first - start : last - start])
            feature += self.config.block
        features = self._zeros(heard.shape[0], 0, *self.feature_shape)
        if windows:
            blocks = [self._hear(torch.cat(few)) for few in _batched(windows, _AT_ONCE)]
            features = rearrange(torch.cat(blocks), "(k b) n ... -> b (k n) ...", k=len(windows))
        keep = min(max(0, self._window(feature)[0] - start), heard.shape[1])
        return features, AudioState(sample, feature, (heard[:, keep:].clone(),))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, device=self.network.device)

    def _window(self, feature: int) -> tuple[int, int]:
        """The samples in which the block that begins with `feature` is heard."""
        first = feature * self.config.hop
        last = first + self.config.block * self.config.hop
        return first - self.config.left_samples, last + self.config.right_samples

    def _hear(self, windows: Tensor) -> Tensor:
        """Windows [k, W] → the features of each one's block [k, block, *feature_shape]."""
        outputs = self.network(normalised(windows), output_hidden_states=True)
        skipped = self.config.left // self.config.every
        block = slice(skipped, skipped + self.config.block)
        return self._chosen(outputs)[:, block]

    def _chosen(self, outputs: Any) -> Tensor:
        last: Tensor = outputs.last_hidden_state
        if self.config.states == "last":
            return last
        # Where the network ends in a normalisation, the last hidden state has passed it.
        states = [*outputs.hidden_states[:-1], last]
        first = 1 if self.config.states == "transformer" else 0
        return torch.stack(states[first:], dim=2)  # [B, n, L, D]


def _batched(windows: list[Tensor], size: int) -> list[list[Tensor]]:
    return [windows[index : index + size] for index in range(0, len(windows), size)]


def normalised(window: Tensor) -> Tensor:
    """Zero mean and unit variance over [B, W], as the public networks were trained to hear."""
    deviation = window.std(dim=-1, keepdim=True, correction=0).clamp(min=_QUIETEST)
    return (window - window.mean(dim=-1, keepdim=True)) / deviation


def load_wav2vec(folder: Path, config: Wav2Vec2FrontEnd, device: torch.device) -> Wav2Vec:
    """A network from a local folder in the layout of `transformers` (config.json and weights).

    Raises:
        BadCheckpoint: not such a folder, or weights are missing, unreadable or of another shape.
    """
    from transformers import Wav2Vec2Model

    if not (folder / "config.json").is_file():
        raise BadCheckpoint(str(folder), why="no config.json: expected a wav2vec2 model folder")
    try:
        network, found = Wav2Vec2Model.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:
        # A folder that lies fails wherever the library happens to be, with whatever it meets there.
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise BadCheckpoint(str(folder), why=why) from error
    # The mask embedding serves pre-training alone.
    missing = sorted(set(found["missing_keys"]) - {"masked_spec_embed"})
    if missing:
        raise BadCheckpoint(str(folder), missing=missing)
    return Wav2Vec(network.to(device), config)


def _thinned(every: int) -> Any:
    def thin(_module: nn.Module, _inputs: object, frames: Tensor) -> Tensor:
        return frames[..., ::every]

    return thin
