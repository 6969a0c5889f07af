"""Bring many evaluations down to two: regression to a many-step result, then distribution matching.

teacher, student of real contexts → **distil** → the model that ships. After TalkingMachines (Low &
Wang, arXiv 2506.03099): CausVid (arXiv 2412.07772) with contexts partly real and partly the
student's own, a regression loss, no adversary. Students roll out through the serving cache.

Legend: B clips, K chunks, C latent channels, F latent frames of a chunk, h and w rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from services.score.denoise import levels, noised
from services.score.model import Dit
from training import losses
from training.flow import Conditions, Flow, FlowLoss, conditions, disturbed, mouth_weight
from training.kernels import quick_to_learn
from training.latents import LatentClips
from training.learner import Learner, Recipe
from training.look import exported, looked_at
from training.rollout import Rollout, noises, speech_of
from training.run import Draw
from training.sampling import from_noise
from training.supply import Supply
from training.vae import autocast


@dataclass(frozen=True, slots=True)
class Origin:
    """What a student learns from: a frozen flow and how it is sampled."""

    flow: Flow
    steps: int = 12
    guidance: float = 2.0  # 1 is none; else every step costs two evaluations

    @torch.no_grad()
    def carried(self, clips: LatentClips, noise: Tensor) -> Tensor:
        """Where the origin carries `noise` [B, K, C, F, h, w]."""
        given, null = self.conditions(clips)
        return from_noise(
            self.flow, clips, given, null, noise, steps=self.steps, scale=self.guidance
        )

    @torch.no_grad()
    def believed(self, noisy: Tensor, level: Tensor, clips: LatentClips) -> Tensor:
        """The clean clips that it reads out of noisy ones, guided."""
        given, null = self.conditions(clips)
        context = clips.latents.float()
        clean = self.flow.believed(noisy, level, given, context=context)
        if null is None:
            return clean
        without = self.flow.believed(noisy, level, null, context=context)
        return losses.guided(clean, without, self.guidance)

    def conditions(self, clips: LatentClips) -> tuple[Conditions, Conditions | None]:
        given = conditions(self.flow.dit, clips)
        if self.guidance == 1:
            return given, None
        everybody = torch.ones(len(clips.latents), dtype=torch.bool, device=clips.latents.device)
        return given, conditions(self.flow.dit, clips, deaf=everybody)


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a student is distilled."""

    own_from: float = 0.2  # share of contexts that are the student's own, at the beginning
    own_to: float = 0.8  # and at the end
    fake_updates: int = 5  # of the fake score for each of the student
    regression: float = 0.25  # weight of the regression loss at the beginning
    regression_to: float = 0.1  # and at the end
    lowest: float = 0.02  # level at which teacher and fake score are compared
    highest: float = 0.98
    shift: float = 3.0

    def own_share(self, progress: float) -> float:
        return self.own_from + (self.own_to - self.own_from) * progress

    def regression_weight(self, progress: float) -> float:
        return self.regression + (self.regression_to - self.regression) * progress


class RegressionTask:
    """A `Task`: from the student's own levels straight to where its origin goes in many steps.

    Real contexts, disturbed; all chunks of a clip at once. Pays only once the origin's many steps
    are better than the student's two.
    """

    def __init__(
        self, dit: Dit, origin: Origin, recipe: Recipe, *, supply: Supply, rows: int
    ) -> None:
        self.device = dit.patch_embedding.weight.device
        self.learner, self._origin = Learner(quick_to_learn(dit), recipe), origin
        self._flow, self._supply, self._rows = Flow(dit, "causal"), supply, rows

    def step(self, draw: Draw, progress: float) -> Mapping[str, Tensor]:
        clips = self._supply.pool.batch(self.learner.steps, self._rows, draw.host)
        with autocast(self.device):
            loss = regressed(self._flow, self._origin, clips, draw)
        norm = self.learner.descend(loss, progress)
        return {"regression": loss.detach(), "gradient": norm}

    def state(self) -> dict[str, Any]:
        return {"learner": self.learner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state["learner"])

    def sheet(self) -> tuple[Tensor, Mapping[str, float]]:
        with self.learner.averaged():
            return looked_at(self._flow, self._supply, self.device)

    def export(self, directory: Path) -> None:
        with self.learner.averaged():
            exported(cast(Dit, self.learner.model), self._supply, directory)


class DmdTask:
    """A `Task`: distribution matching of what the student streams with what the teacher knows."""

    def __init__(
        self,
        dit: Dit,
        fake: Dit,
        teacher: Origin,
        distillation: Distillation,
        recipe: Recipe,
        *,
        supply: Supply,
        rows: int,
    ) -> None:
        self.device = dit.patch_embedding.weight.device
        self.learner = Learner(quick_to_learn(dit), recipe)
        self.fake = Learner(quick_to_learn(fake), recipe)
        self._student, self._scores = Flow(dit, "causal"), Flow(fake, "whole")
        self._teacher, self._distillation = teacher, distillation
        self._supply, self._rows = supply, rows

    def step(self, draw: Draw, progress: float) -> Mapping[str, Tensor]:
        turn = self.fake.steps
        clips = self._supply.pool.batch(turn, self._rows, draw.host)
        learns = turn % self._distillation.fake_updates == 0
        with autocast(self.device), torch.set_grad_enabled(learns):
            made = self._rolled_out(clips, draw, progress)
        numbers = self._follow(made, clips, draw, progress) if learns else {}
        numbers["fake"] = self._score(made.detach(), clips, draw, progress)
        return numbers

    def state(self) -> dict[str, Any]:
        return {"learner": self.learner.state(), "fake": self.fake.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state["learner"])
        self.fake.restore(state["fake"])

    def sheet(self) -> tuple[Tensor, Mapping[str, float]]:
        with self.learner.averaged():
            return looked_at(self._student, self._supply, self.device)

    def export(self, directory: Path) -> None:
        with self.learner.averaged():
            exported(cast(Dit, self.learner.model), self._supply, directory)

    def _rolled_out(self, clips: LatentClips, draw: Draw, progress: float) -> Tensor:
        """Clips as the student streams them; one step, picked for all, is the last and learns."""
        given = conditions(self._student.dit, clips)
        rollout = Rollout(self._student, given.scene)
        chunks, steps = clips.latents.shape[1], len(levels(self._student.config.schedule))
        last = int(torch.randint(steps, (), generator=draw.host))
        own = torch.rand(self._rows, generator=draw.host) < self._distillation.own_share(progress)
        own = own.to(self.device)
        made = []
        for chunk in range(chunks):
            speech = speech_of(given, chunk, chunks)
            noise = noises(self._student, given, draw.device)
            drawn = rollout.learn(noise, speech, last=last)
            real = clips.latents[:, chunk].float()
            seen = torch.where(losses.per_row(own, real), drawn.detach(), real)
            rollout.remember(seen, speech)
            made.append(drawn)
        return torch.stack(made, 1)

    def _follow(
        self, made: Tensor, clips: LatentClips, draw: Draw, progress: float
    ) -> dict[str, Tensor]:
        """Teach the student where the teacher's clips are more likely than its own."""
        with autocast(self.device):
            matched = self._matched(made, clips, draw)
            drawn = regressed(self._student, self._teacher, clips, draw)
        loss = matched + self._distillation.regression_weight(progress) * drawn
        norm = self.learner.descend(loss, progress)
        return {"matched": matched.detach(), "regression": drawn.detach(), "gradient": norm}

    def _matched(self, made: Tensor, clips: LatentClips, draw: Draw) -> Tensor:
        with torch.no_grad():
            noisy, level = self._noised(made.detach(), draw)
            true = self._teacher.believed(noisy, level, clips)
            given = conditions(self._scores.dit, clips)
            fake = self._scores.believed(noisy, level, given, context=noisy)
        return losses.dmd(made, losses.dmd_direction(made, true, fake))

    def _score(self, made: Tensor, clips: LatentClips, draw: Draw, progress: float) -> Tensor:
        """Teach the fake score what the student makes now."""
        with autocast(self.device):
            noisy, level = self._noised(made, draw)
            given = conditions(self._scores.dit, clips)
            believed = self._scores.believed(noisy, level, given, context=noisy)
        loss = losses.flow(believed, made, level, floor=FlowLoss().floor)
        self.fake.descend(loss, progress)
        return loss.detach()

    def _noised(self, made: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        ways = self._distillation
        uniform = torch.rand(len(made), generator=draw.device, device=self.device)
        level = losses.shifted(ways.lowest + (ways.highest - ways.lowest) * uniform, ways.shift)
        noise = torch.randn(made.shape, generator=draw.device, device=self.device)
        return noised(made, noise, losses.per_row(level, made)), level


def regressed(student: Flow, origin: Origin, clips: LatentClips, draw: Draw) -> Tensor:
    """Distance of the student at one of its own levels from where the origin carries the noise."""
    device, clean = draw.device.device, clips.latents.float()
    noise = torch.randn(clean.shape, generator=draw.device, device=device)
    target = origin.carried(clips, noise)
    schedule = levels(student.config.schedule)
    step = int(torch.randint(len(schedule), (), generator=draw.host))
    again = torch.randn(clean.shape, generator=draw.device, device=device)
    x = noise if step == 0 else noised(target, again, schedule[step])
    given = conditions(student.dit, clips)
    believed = student.believed(
        x,
        torch.full((len(clean),), schedule[step], device=device),
        given,
        context=disturbed(FlowLoss(), clean, draw.device),
        context_gradient=False,
    )
    return losses.regression(believed, target, weight=mouth_weight(FlowLoss(), clips))
