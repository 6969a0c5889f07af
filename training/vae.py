"""Train the video VAE on crops, half of them around the mouth: pictures, short clips, longer ones.

footage → **vae** → latents. A causal 3-D network whose convolutions have no past to begin with is
a picture network, so all phases train the same model: clips find it inflated. A clip begins with
the reference picture as often as with its own first frame, because a stream does. Longer clips in
the end fill the memory that a stream has.

    python -m training.vae --out RUN --minutes 40

Ends in RUN/export, which `services.vae.checkpoint.load` reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from services.vae import checkpoint
from services.vae.config import VaeConfig
from services.vae.model import Vae
from services.vae.state import State
from training import losses, measure
from training.babble import Babble
from training.beginning import begun
from training.data.faces.split import Split
from training.data.faces.truth import mouth_weights
from training.footage import Footage, Geometry, Studio
from training.latent_space import Moments, turned
from training.learner import Learner, Recipe
from training.rows import Keep, Pool, picked
from training.run import Budget, Draw, run
from training.sheet import grid
from training.shipped import clips_of_faces, shipped_vae

_LOG_VARIANCE = (-12.0, 2.0)  # a runaway posterior is how such training ends in NaN


@dataclass(frozen=True, slots=True)
class Phase:
    """Part of a run that learns from crops of one shape."""

    until: float  # share of the run
    crop: int  # pixels per side
    frames: int
    rows: int  # crops per step


@dataclass(frozen=True, slots=True)
class VaeTraining:
    """What is learned from how much at a time."""

    phases: tuple[Phase, ...] = (
        Phase(until=0.35, crop=64, frames=1, rows=16),
        Phase(until=0.85, crop=64, frames=5, rows=8),
        Phase(until=1.0, crop=96, frames=13, rows=2),
    )
    mouth: float = 3.0  # weight of the mouth's pixels
    divergence: float = 1e-5
    pool: int = 96  # rendered clips to draw from
    block: int = 4  # of them replaced together
    period: int = 32  # steps between two replacements
    held_out: int = 12  # clips of unseen characters that judge

    def phase(self, progress: float) -> Phase:
        return next((one for one in self.phases if progress < one.until), self.phases[-1])


@dataclass(frozen=True, slots=True)
class Crops:
    """Frames in -1..1 [B, 3, T, h, w] and how much each pixel matters [B, 1, T, h, w]."""

    frames: Tensor
    weight: Tensor


class VaeTask:
    """A `Task` for the run loop."""

    def __init__(
        self,
        config: VaeConfig,
        training: VaeTraining,
        recipe: Recipe,
        *,
        geometry: Geometry,
        device: torch.device,
        keep: Keep | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.device, self._training, self._geometry = device, training, geometry
        self.learner = Learner(laid_out(begun(Vae(config)).to(device)), recipe)
        speaker = Babble(geometry)
        studio = Studio(speaker, geometry, Split.TRAIN, device)
        make = studio.make if keep is None else keep.of("footage").made(Footage, studio.make)
        self._pool = Pool(make, size=training.pool, block=training.block, period=training.period)
        judges = Studio(speaker, geometry, Split.TEST, device)
        self._judges = judges.make(range(training.held_out))

    @property
    def vae(self) -> Vae:
        return cast(Vae, self.learner.model)

    def step(self, draw: Draw, progress: float) -> Mapping[str, Tensor]:
        phase = self._training.phase(progress)
        footage = self._pool.batch(self.learner.steps, phase.rows, draw.host)
        crops = cropped(footage, phase, self._training.mouth, draw.host)
        with autocast(self.device):
            mean, log_variance, _ = self.vae.posterior(crops.frames, State())
            mean, log_variance = mean.float(), log_variance.float().clamp(*_LOG_VARIANCE)
            noise = torch.randn(mean.shape, generator=draw.device, device=self.device)
            raw = mean + (log_variance / 2).exp() * noise
            made, _ = self.vae.decode(self.vae.normalise(raw), State())
        drawn = losses.reconstruction(made.float(), crops.frames, weight=crops.weight)
        apart = losses.divergence(mean, log_variance)
        norm = self.learner.descend(drawn + self._training.divergence * apart, progress)
        return {"drawn": drawn.detach(), "divergence": apart.detach(), "gradient": norm}

    def state(self) -> dict[str, Any]:
        return {"learner": self.learner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state["learner"])

    def sheet(self) -> tuple[Tensor, Mapping[str, float]]:
        """Held-out frames above what the model makes of them, with their mouths beside them."""
        with self.learner.averaged():
            true, made = self._judged()
        weight = mouth_weights(self._judges.truth, true.shape[-1], 2.0)[:, : true.shape[2] - 1]
        mouth = (weight > 1.99).flatten(0, 1)[:, None].float()
        flat = [x[:, :, 1:].transpose(1, 2).flatten(0, 1) for x in (true, made)]
        numbers = {
            "psnr": measure.psnr(flat[1], flat[0]),
            "mouth_psnr": measure.psnr(flat[1], flat[0], mask=mouth),
            "ssim": measure.ssim(flat[1], flat[0]),
            "anchor_psnr": measure.psnr(made[:, :, 0], true[:, :, 0]),
        }
        middle = true.shape[2] // 2
        return grid([true[:6, :, middle], made[:6, :, middle]]), numbers

    def export(self, directory: Path) -> None:
        with self.learner.averaged():
            frames = [self._stream(clip) for clip in self._each()]
            moments = Moments.of(self._means(clip).movedim(1, -1) for clip in frames)
            vae = turned(self.vae, moments)
        checkpoint.save(vae.to(torch.bfloat16), directory)

    def _each(self) -> list[Footage]:
        return [picked(self._judges, slice(i, i + 1)) for i in range(len(self._judges))]

    def _stream(self, footage: Footage) -> Tensor:
        """The clips as a stream begins: the reference picture, then whole latents' frames."""
        per = self.vae.config.frames_per_latent
        frames = footage.frames[:, : footage.frames.shape[1] // per * per]
        return signed(torch.cat([footage.anchor[:, None], frames], 1).to(self.device))

    def _means(self, frames: Tensor) -> Tensor:
        with autocast(self.device):
            mean, _, _ = self.vae.posterior(frames, State())
        return mean.float()

    def _judged(self) -> tuple[Tensor, Tensor]:
        """Held-out streams and what is left of them, [B, 3, 1 + T, H, W] each."""
        true, made = [], []
        for clip in self._each():
            frames = self._stream(clip)
            with autocast(self.device):
                out, _ = self.vae.decode(self.vae.normalise(self._means(frames)), State())
            true.append(frames)
            made.append(out.float())
        return torch.cat(true), torch.cat(made)


def laid_out(vae: Vae) -> Vae:
    """Channels last in memory, as convolutions run fastest."""
    for parameter in vae.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for what gains from it; weights and latents stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def signed(frames: Tensor) -> Tensor:
    """uint8 [B, T, 3, H, W] as a model takes them: [B, 3, T, H, W] in -1..1."""
    x = frames.transpose(1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last_3d)


def cropped(footage: Footage, phase: Phase, mouth: float, generator: torch.Generator) -> Crops:
    """Squares of a few frames of the clips, half of them around the mouth."""
    shown, weights, side, frames = list[Tensor](), list[Tensor](), phase.crop, phase.frames
    for row in range(len(footage)):
        clip = picked(footage, slice(row, row + 1))
        first = _below(clip.frames.shape[1] - frames + 1, generator)
        y, x = _corner(clip.truth.mouth_box[0, first], clip.frames.shape[-1], side, generator)
        window = slice(first, first + frames), slice(y, y + side), slice(x, x + side)
        shown.append(_started(clip, window[0], generator)[..., window[1], window[2]])
        weight = mouth_weights(clip.truth, clip.frames.shape[-1], mouth)
        weights.append(weight[:, window[0], window[1], window[2]])
    weight = torch.cat(weights)[:, None]
    return Crops(signed(torch.cat(shown)), weight / weight.mean())


def _started(clip: Footage, window: slice, generator: torch.Generator) -> Tensor:
    """Some of the clip's frames, the first of them the reference picture in half of the cases."""
    frames = clip.frames[:, window]
    if _below(2, generator):
        return frames
    return torch.cat([clip.anchor[:, None], frames[:, 1:]], 1)


def _corner(box: Tensor, size: int, side: int, generator: torch.Generator) -> tuple[int, int]:
    """Top and left of a square within a picture of `size`: anywhere, or around a mouth."""
    places = torch.rand(2, generator=generator) * (size - side)
    if _below(2, generator):
        centre = torch.stack([box[1] + box[3], box[0] + box[2]]).cpu() / 2 * size
        jitter = (torch.rand(2, generator=generator) - 0.5) * side / 2
        places = centre - side / 2 + jitter
    y, x = places.clamp(0, size - side).long().tolist()
    return y, x


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training, over all calls")
    parser.add_argument("--call-minutes", type=float, help="end this call earlier")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    Keep.arguments(parser)
    asked = parser.parse_args()
    task = VaeTask(
        shipped_vae(),
        VaeTraining(),
        Recipe(rate=1e-3, hold=0.4, betas=(0.9, 0.95)),
        geometry=clips_of_faces(),
        device=asked.device,
        keep=Keep.asked(asked),
    )
    run(task, asked.out, Budget(asked.minutes, call_minutes=asked.call_minutes))


if __name__ == "__main__":
    main()
