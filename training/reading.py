"""Teach the two readers of mouths: one from a run's latents, one from renderer frames.

    python -m training.reading latents --out reader.safetensors --minutes 2 --speech ... (as above)
    python -m training.reading pixels  --out judge.safetensors  --minutes 5

The first grades the latent space: on unseen characters it has to find the opening with r >= 0.95
before any transformer is trained on it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from services.vae.config import VaeConfig
from training.babble import Babble
from training.data.faces.expression import MOUTH
from training.data.faces.split import Split
from training.flow_task import read
from training.footage import Footage, Studio
from training.latents import LatentClips
from training.learner import Learner, Recipe
from training.measure import correlation
from training.mouth_reader import LatentReader, PixelReader, lips_apart, mouth_crop
from training.rows import Keep, Pool
from training.run import Budget, draw
from training.shipped import clips_of_faces, shipped_dit
from training.supply import Sources, supply
from training.vae import signed

_HOST = torch.device("cpu")


def learn_latents(
    reader: LatentReader, pool: Pool[LatentClips], *, budget: Budget, rows: int = 24
) -> None:
    """Learn to read latents, noisy ones as well, as those of a model are."""
    recipe = Recipe(rate=1.5e-3, weight_decay=0.05, warm_up=20)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        clips = _chunk(pool.batch(step, rows, generator), generator)
        level = 0.3 * torch.rand(rows, 1, 1, 1, 1, 1, generator=generator)
        noise = torch.randn(clips.latents.shape, generator=generator)
        seen = clips.latents.float() + (level * noise).to(clips.latents.device)
        return (read(reader, seen, clips) - clips.controls).square().mean()

    _learn(reader, recipe, loss, budget)


def _chunk(clips: LatentClips, generator: torch.Generator) -> LatentClips:
    """One chunk of all clips: more characters at once for the same price."""
    chunks = clips.latents.shape[1]
    frames = clips.controls.shape[1] // chunks
    k = int(torch.randint(chunks, (), generator=generator))
    return replace(
        clips,
        latents=clips.latents[:, k : k + 1],
        controls=clips.controls[:, k * frames : (k + 1) * frames],
    )


def learn_pixels(
    reader: PixelReader, pool: Pool[Footage], *, budget: Budget, rows: int = 16
) -> None:
    """Learn to read pictures: moved, blurred, in other light, as a model's are."""
    recipe = Recipe(rate=1e-3, weight_decay=0.05, warm_up=20)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        footage = pool.at(step)
        clip = torch.randint(len(footage), (rows, 1), generator=generator)
        frame = torch.randint(footage.frames.shape[1], (rows, 4), generator=generator)
        frames = footage.frames[clip, frame].flatten(0, 1).float() / 127.5 - 1
        boxes = footage.truth.mouth_box[clip, frame].flatten(0, 1)
        jitter = 0.03 * torch.randn(len(boxes), 2, generator=generator)
        crops = spoiled(mouth_crop(frames, boxes + jitter.repeat(1, 2)), generator)
        return F.mse_loss(reader(crops), footage.controls[clip, frame].flatten(0, 1))

    _learn(reader, recipe, loss, budget)


def spoiled(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Crops [N, 3, h, w] as a model might have drawn them: softer, brighter, noisier."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = len(crops)
    soft = F.avg_pool2d(crops, 3, 1, 1, count_include_pad=False)
    softer = F.avg_pool2d(crops, 5, 1, 2, count_include_pad=False)
    chance = draw(rows, 1, 1, 1)
    crops = torch.where(chance < 0.3, soft, torch.where(chance < 0.6, softer, crops))
    crops = crops * (1 + 0.1 * normal(rows, 1, 1, 1)) + 0.08 * normal(rows, 3, 1, 1)
    return crops + 0.03 * normal(*crops.shape)


@torch.no_grad()
def grade_latents(reader: LatentReader, clips: LatentClips) -> float:
    """Correlation of the opening that is read with the true one."""
    said = lips_apart(read(reader.eval(), clips.latents.float(), clips))
    return correlation(said.flatten(), lips_apart(clips.controls).flatten())


@torch.no_grad()
def grade_pixels(reader: PixelReader, footage: Footage) -> dict[str, float]:
    """The same for every control and for how far the lips are apart."""
    frames = signed(footage.frames).transpose(1, 2).flatten(0, 1)
    crops = mouth_crop(frames, footage.truth.mouth_box.flatten(0, 1))
    said, true = reader.eval()(crops), footage.controls.flatten(0, 1)
    grades = {name: correlation(said[:, k], true[:, k]) for k, name in enumerate(MOUTH)}
    return {**grades, "apart": correlation(lips_apart(said), lips_apart(true))}


def _learn(
    reader: nn.Module,
    recipe: Recipe,
    loss: Callable[[int, torch.Generator], Tensor],
    budget: Budget,
) -> None:
    learner, began = Learner(reader.train(), recipe), time.monotonic()
    while (progress := budget.progress(learner.steps, (time.monotonic() - began) / 60)) < 1:
        learner.descend(loss(learner.steps, draw(3, learner.steps, _HOST).host), progress)
        if learner.steps % 100 == 0:
            sys.stdout.write(f"step {learner.steps} {progress:.0%}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    latents, pixels = kinds.add_parser("latents"), kinds.add_parser("pixels")
    Sources.arguments(latents)
    Keep.arguments(pixels)
    for kind in (latents, pixels):
        kind.add_argument("--out", type=Path, required=True, help="the file of weights")
        kind.add_argument("--minutes", type=float, required=True)
    asked = parser.parse_args()
    torch.manual_seed(0)
    made = _latents(asked) if asked.kind == "latents" else _pixels(asked)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(made.state_dict(), asked.out)


def _latents(asked: argparse.Namespace) -> LatentReader:
    config = shipped_dit(VaeConfig.read(asked.vae))
    fed = supply(Sources.of(asked), config, pool=96, block=4, period=8, held_out=16)
    reader = LatentReader(config.latent.channels, config.latent.stride[0]).to(asked.device)
    fed.pool.at(0)  # what it takes to make the first clips is not learning
    learn_latents(reader, fed.pool, budget=Budget(asked.minutes))
    sys.stdout.write(f"opening on unseen characters: r {grade_latents(reader, fed.held_out):.3f}\n")
    return reader


def _pixels(asked: argparse.Namespace) -> PixelReader:
    geometry = clips_of_faces()
    speaker, reader, keep = Babble(geometry), PixelReader(), Keep.asked(asked)
    studio = Studio(speaker, geometry, Split.TRAIN, _HOST)
    make = studio.make if keep is None else keep.of("footage").made(Footage, studio.make)
    pool = Pool(make, size=48, block=4, period=8)
    pool.at(0)
    learn_pixels(reader, pool, budget=Budget(asked.minutes))
    unseen = Studio(speaker, geometry, Split.TEST, _HOST).make(range(16))
    for name, r in grade_pixels(reader, unseen).items():
        sys.stdout.write(f"{name:8} r {r:.3f}\n")
    return reader


if __name__ == "__main__":
    main()
