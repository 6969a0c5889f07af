"""Learning by flow matching, as a task of the run loop.

flow → **flow_task** → teacher, student. One task for both: what differs is the sight of the model
and what is dropped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.score.config import DitConfig
from services.score.denoise import noised
from services.score.model import Dit
from training import losses
from training.flow import (
    Believer,
    Flow,
    FlowLoss,
    Sight,
    conditions,
    disturbed,
    levels,
    mouth_weight,
    some,
)
from training.kernels import quick_to_learn
from training.latents import LatentClips
from training.learner import Learner, Recipe
from training.look import exported, looked_at
from training.mouth_reader import WORTH, LatentReader, load_reader
from training.rollout import streamed
from training.run import Draw
from training.supply import Supply
from training.vae import autocast

Reader = tuple[LatentReader, float]  # one that pulls at the mouth, and how hard


def reader_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--reader", type=Path, help="a reader of latents that pulls at the mouth")
    add("--reader-weight", type=float, default=8.0, help="(%(default)s)")


def asked_reader(asked: argparse.Namespace, config: DitConfig) -> Reader | None:
    if asked.reader is None:
        return None
    latent = config.latent
    network = load_reader(asked.reader, latent.channels, latent.stride[0], asked.device)
    return network, asked.reader_weight


class FlowTask:
    """A `Task`: flow matching with one sight or the other."""

    def __init__(
        self,
        dit: Dit,
        sight: Sight,
        loss: FlowLoss,
        recipe: Recipe,
        *,
        supply: Supply,
        rows: int,
        device: torch.device,
        reader: Reader | None = None,
        own_contexts: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """
        Args:
            own_contexts: share of steps, first and last, whose contexts the student streams itself.
        """
        self.dit, self.device = quick_to_learn(dit.to(device)), device
        self._believer = Believer(self.dit, sight)
        self.learner = Learner(self._believer, recipe)
        self._flow, self._loss, self._supply, self._rows = Flow(dit, sight), loss, supply, rows
        self._reader, self._own_contexts = reader, own_contexts

    def step(self, draw: Draw, progress: float) -> Mapping[str, Tensor]:
        clips = self._supply.pool.batch(self.learner.steps, self._rows, draw.host)
        loss, numbers = self._learn(clips, draw, progress)
        numbers["gradient"] = self.learner.descend(loss, progress)
        return numbers

    def state(self) -> dict[str, Any]:
        return {"learner": self.learner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state["learner"])

    def sheet(self) -> tuple[Tensor, Mapping[str, float]]:
        """Held-out clips: as rendered, then as the model draws them in 2 and in 8 steps."""
        with self.learner.averaged():
            return looked_at(self._flow, self._supply, self.device)

    def export(self, directory: Path) -> None:
        with self.learner.averaged():
            exported(self.dit, self._supply, directory)

    def _learn(
        self, clips: LatentClips, draw: Draw, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, own = self._loss, draw.device
        clean, level = clips.latents.float(), levels(loss, self._rows, own)
        noise = torch.randn(clean.shape, generator=own, device=own.device)
        clips = unplaced(clips, some(loss.anywhere, self._rows, own))
        through = float(torch.rand((), generator=draw.host)) < loss.context_gradient
        with autocast(self.device):
            believed = self._believer(
                noised(clean, noise, losses.per_row(level, clean)),
                level,
                clips,
                context=self._context(clips, draw, progress),
                context_gradient=through,
                deaf=some(loss.deaf, self._rows, own),
                blind=some(loss.blind, self._rows, own),
            )
        flow = losses.flow(
            believed, clean, level, weight=mouth_weight(loss, clips), floor=loss.floor
        )
        numbers = {"flow": flow.detach()}
        if self._reader is None:
            return flow, numbers
        reader, weight = self._reader
        sync = read_loss(reader, believed, clips)
        return flow + weight * sync, {**numbers, "sync": sync.detach()}

    def _context(self, clips: LatentClips, draw: Draw, progress: float) -> Tensor:
        """Finished chunks: real ones, disturbed, or now and then a stream of the student's own."""
        clean, (first, last) = clips.latents.float(), self._own_contexts
        share, chunks = first + (last - first) * progress, clean.shape[1]
        if not share or float(torch.rand((), generator=draw.host)) >= share:
            return disturbed(self._loss, clean, draw.device)
        with torch.no_grad():
            given = conditions(self.dit, clips)
            drawn = streamed(self._flow, given, chunks, draw.device, first=chunks - 1)
        return torch.cat([drawn, clean[:, -1:]], 1)  # nobody looks at the last


def unplaced(clips: LatentClips, rows: Tensor) -> LatentClips:
    """`clips` with the whole picture for a face in some rows, bool [B]: not everybody says more."""
    return replace(clips, faces=torch.where(rows[:, None], 1.0, clips.faces))


def read_loss(reader: LatentReader, believed: Tensor, clips: LatentClips) -> Tensor:
    """How far the mouth that is read out of `believed` [B, K, C, F, h, w] is from the true one."""
    error = (read(reader, believed, clips) - clips.controls).square()
    return (error * error.new_tensor(WORTH)).mean()


def read(reader: LatentReader, latents: Tensor, clips: LatentClips) -> Tensor:
    """Mouth controls [B, T, 6] that a reader finds in latents [B, K, C, F, h, w]."""
    frames = latents.permute(0, 1, 3, 2, 4, 5).flatten(1, 2)  # [B, K * F, C, h, w]
    anchor = clips.anchor.float()[:, None, :, 0].expand_as(frames)
    said: Tensor = reader(frames.flatten(0, 1), anchor.flatten(0, 1))
    return said.view(len(latents), -1, said.shape[-1])
