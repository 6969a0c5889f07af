"""Train the video VAE on crops, half of them around the mouth: pictures first, then clips.

footage → **vae** → latents. Frames are drawn one by one, so a VAE of pictures comes first; clips
find its frames folded into latents as well as anything linear can (`latent_space.folded`), and
teach the whole what follows what. A clip begins with the reference picture as often as with its own
first frame, because a stream does.

    python -m training.vae pictures --out P --minutes 17
    python -m training.vae clips --start P/export --out V --minutes 6

Each ends in an `export` that `services.vae.checkpoint.load` reads; that of clips is what serves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor

from services.vae import checkpoint
from services.vae.model import Vae
from services.vae.state import State
from training import losses, measure
from training.babble import Babble
from training.beginning import begun
from training.data.faces.split import Split
from training.data.faces.truth import mouth_weights
from training.footage import Footage, Geometry, Studio
from training.latent_space import Moments, folded, turned
from training.learner import Learner, Recipe
from training.rows import Keep, Pool, picked
from training.run import Budget, Draw, run
from training.sheet import grid
from training.shipped import SIDE, clips_of_faces, picture_vae, pictures_of_faces, shipped_vae

_FOLDED_CLIPS = 48  # from which a fold takes its axes
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

    phases: tuple[Phase, ...]
    mouth: float = 2.5  # weight of the mouth's pixels
    divergence: float = 1e-5
    human: float = 0.12  # share of the family that costs ten times as much to draw
    pool: int = 96  # rendered clips to draw from
    block: int = 4  # of them replaced together
    period: int = 8  # steps between two replacements
    held_out: int = 12  # clips of unseen characters that judge

    def phase(self, progress: float) -> Phase:
        return next((one for one in self.phases if progress < one.until), self.phases[-1])


PICTURES = VaeTraining(phases=(Phase(until=1.0, crop=64, frames=1, rows=16),), pool=384)
CLIPS = VaeTraining(phases=(Phase(until=1.0, crop=64, frames=9, rows=4),))


@dataclass(frozen=True, slots=True)
class Crops:
    """Frames in -1..1 [B, 3, T, h, w] and how much each pixel matters [B, 1, T, h, w]."""

    frames: Tensor
    weight: Tensor


class VaeTask:
    """A `Task` for the run loop."""

    def __init__(
        self,
        vae: Vae,
        training: VaeTraining,
        recipe: Recipe,
        *,
        geometry: Geometry,
        device: torch.device,
        keep: Keep | None = None,
        compiled: bool = False,
    ) -> None:
        self.device, self._training, self._geometry = device, training, geometry
        self.learner = Learner(laid_out(vae.to(device)), recipe)
        speaker, human = Babble(geometry), training.human
        learned, judging = (
            Studio(speaker, geometry, split, device, human=human, compiled=compiled)
            for split in (Split.TRAIN, Split.TEST)
        )
        make: Callable[[Sequence[int]], Footage] = learned.make
        if keep is not None:
            make = keep.of("footage").made(Footage, make)
        self._pool = Pool(make, size=training.pool, block=training.block, period=training.period)
        self._judges = judging.make(range(training.held_out))

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
        if _below(2, generator):
            shown[-1], weights[-1] = shown[-1].flip(-1), weights[-1].flip(-1)
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


def folding(pictures: Vae, clips: Iterator[Tensor]) -> Vae:
    """The shipped VAE, which folds what `pictures` makes of clips [B, 3, 4 n, H, W] in -1..1."""
    config = shipped_vae()
    assert config.fold is not None
    frames = config.fold.frames

    def codes() -> Iterator[Tensor]:
        for clip in clips:
            with torch.no_grad(), autocast(clip.device):
                mean, _, _ = pictures.posterior(clip, State())
            yield rearrange(mean.float(), "b c (t f) h w -> b t h w (f c)", f=frames)

    return folded(pictures, config, Moments.of(codes())).train().requires_grad_(True)


def _seen(asked: argparse.Namespace) -> Iterator[Tensor]:
    """Clips that say how codes of pictures vary over time."""
    geometry = clips_of_faces()
    make: Callable[[Sequence[int]], Footage]
    make = Studio(Babble(geometry), geometry, Split.TRAIN, asked.device).make
    if (keep := Keep.asked(asked)) is not None:
        make = keep.of("footage").made(Footage, make)
    for number in range(_FOLDED_CLIPS):
        clip = make([number])
        frames = signed(clip.frames[:, : geometry.frames // 4 * 4].to(asked.device))
        yield frames
        # A mouth is a small part of a picture, and what a latent must not lose.
        left, top, right, bottom = (clip.truth.mouth_box[0, 0] * SIDE).tolist()
        y, x = (
            max(0, min(SIDE - 64, round(at) - 32))
            for at in ((top + bottom) / 2, (left + right) / 2)
        )
        yield from 2 * [frames[..., y : y + 64, x : x + 64]]


def _pictures(asked: argparse.Namespace) -> VaeTask:
    recipe = Recipe(rate=1e-3, hold=0.15, betas=(0.9, 0.95), warm_up=100, mean_decay=0.998)
    return _task(begun(Vae(picture_vae())), PICTURES, recipe, pictures_of_faces(), asked)


def _clips(asked: argparse.Namespace) -> VaeTask:
    start = folding(checkpoint.load(asked.start).float().to(asked.device), _seen(asked))
    recipe = Recipe(rate=4e-4, hold=0.1, betas=(0.9, 0.95), warm_up=20)
    return _task(start, CLIPS, recipe, clips_of_faces(), asked)


def _task(
    vae: Vae,
    training: VaeTraining,
    recipe: Recipe,
    geometry: Geometry,
    asked: argparse.Namespace,
) -> VaeTask:
    return VaeTask(
        vae,
        training,
        recipe,
        geometry=geometry,
        device=asked.device,
        keep=Keep.asked(asked),
        compiled=asked.compiled,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("stage", choices=("pictures", "clips"))
    add("--out", type=Path, required=True)
    add("--start", type=Path, help="folder of the VAE of pictures, for clips")
    add("--minutes", type=float, required=True, help="of training, over all calls")
    add("--call-minutes", type=float, help="end this call earlier")
    add("--device", type=torch.device, default=torch.device("cpu"))
    add("--compiled", action="store_true", help="compile the renderer first")
    Keep.arguments(parser)
    asked = parser.parse_args()
    if asked.stage == "clips" and asked.start is None:
        parser.error("clips needs --start")
    torch.manual_seed(0)
    task = _pictures(asked) if asked.stage == "pictures" else _clips(asked)
    run(task, asked.out, Budget(asked.minutes, call_minutes=asked.call_minutes))


if __name__ == "__main__":
    main()
