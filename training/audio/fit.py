"""Train the speech encoder to predict mouth controls from sound alone, with checkpoints.

The network is `services.score.frontend.speech_encoder`, as it is served.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from services.score.frontend.config import MelFrontEnd
from services.score.frontend.speech_encoder import SpeechEncoder
from training.audio.batches import BatchConfig, Batches
from training.data.speech.crops import SpeechSet
from training.data.speech.split import Train

# Opening and closures matter most to an eye.
_WEIGHTS = {"open": 2.0, "press": 2.0}
# The transformer learns control → pixels first if the hidden features do not shout.
_HIDDEN_SCALE = 0.2
_STANDARDISING_STEPS = 8  # batches whose statistics standardise the features


@dataclass(frozen=True, slots=True)
class FitConfig:
    front_end: MelFrontEnd = field(default_factory=MelFrontEnd)
    batches: BatchConfig = field(default_factory=BatchConfig)
    steps: int = 3000
    rate: float = 2e-3  # of learning; falls linearly to 0
    decay: float = 0.01
    seed: int = 1
    save_every: int = 200  # steps


class Fit:
    """A run: network, optimiser and the step it stands at. Kept in `folder/state.pt`."""

    def __init__(self, folder: Path, speech: SpeechSet[Train], config: FitConfig) -> None:
        """Begin a run, or go on with the one in `folder`."""
        torch.manual_seed(config.seed)
        self.encoder = SpeechEncoder(config.front_end)
        self._optimiser = torch.optim.AdamW(
            self.encoder.parameters(), config.rate, weight_decay=config.decay
        )
        self._batches = Batches(speech, config.front_end, config.batches, seed=config.seed)
        self._config = config
        self._state = folder / "state.pt"
        self.step = 0
        if self._state.exists():
            self._resume()

    def run(self, until: int, say: Callable[[str], None]) -> None:
        """Train up to step `until`, or to the end of the schedule."""
        began, losses = time.monotonic(), []
        while self.step < min(until, self._config.steps):
            losses.append(self._learn())
            if self.step % self._config.save_every == 0:
                self.save()
                mean, seconds = sum(losses) / len(losses), time.monotonic() - began
                say(f"step {self.step:5} loss {mean:.4f} {seconds / len(losses):.3f} s/step")
                began, losses = time.monotonic(), []
        self.save()

    def save(self) -> None:
        """Whole or not at all: a run that dies while it saves keeps the state before."""
        state = {
            "encoder": self.encoder.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
        }
        self._state.parent.mkdir(parents=True, exist_ok=True)
        part = self._state.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._state)

    @torch.no_grad()
    def standardise(self) -> None:
        """Let features come out with mean 0; controls with deviation 1, hidden ones less."""
        seen = [
            self._read(self._batches.at(self.step + ahead)[0])
            for ahead in range(_STANDARDISING_STEPS)
        ]
        features = torch.cat([torch.cat(pair, dim=-1).flatten(0, 1) for pair in seen])
        scale = 1 / features.std(0).clamp(min=1e-3)
        scale[: self._config.front_end.width] *= _HIDDEN_SCALE
        self.encoder.offset.copy_(features.mean(0))
        self.encoder.scale.copy_(scale)

    def _learn(self) -> float:
        rate = self._config.rate * (1 - self.step / self._config.steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        spectra, mouths = self._batches.at(self.step)
        loss = self._loss(self._read(spectra)[1], mouths)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self._optimiser.step()
        self.step += 1
        return loss.item()

    def _read(self, spectra: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden features and controls, number i for feature i - lookahead."""
        hidden, controls, _ = self.encoder(spectra, self.encoder.no_past(len(spectra)))
        return hidden, controls

    def _loss(self, controls: Tensor, mouths: Tensor) -> Tensor:
        """Weighted squared error of those features whose whole history lies in the crop."""
        front_end = self._config.front_end
        ahead, early = front_end.lookahead, -(-front_end.history_samples // front_end.hop)
        known = controls[:, ahead + early :]
        wanted = mouths[:, early : mouths.shape[1] - ahead]
        weights = controls.new_tensor([_WEIGHTS.get(name, 1.0) for name in front_end.controls])
        return ((known - wanted).square() * weights).mean()

    def _resume(self) -> None:
        state = torch.load(self._state, weights_only=True)
        self.encoder.load_state_dict(state["encoder"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
