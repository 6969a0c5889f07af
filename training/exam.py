"""Questions that a model is asked, and how it answers them: streams of unseen characters.

supply → **exam** → evaluate. A question is a reference picture and speech; an answer is frames,
chunk by chunk, through the serving cache and the streaming decoder, so a stream may be as long as
one likes. Teachers do not stream: they answer clip by clip.

Legend: B characters, T video frames, K chunks of a teacher's clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from services.score.avatars import face_mask
from services.score.config import ScheduleConfig
from services.score.contract import Rectangle
from services.score.frontend.features import FrontEnd
from services.score.frontend.track import SpeechTrack
from services.vae.model import Vae
from services.vae.state import State
from training.data.faces.behaviour import Motion
from training.data.faces.clip import Scene, reference, render
from training.data.faces.family import Family
from training.data.faces.split import Split, identity_seed
from training.data.faces.truth import Truth
from training.distil import Origin
from training.flow import Flow, conditions
from training.footage import Geometry, Speaker, is_heard
from training.latents import LatentClips
from training.rollout import Rollout, noises
from training.vae import autocast, signed

_CLIP = 4  # chunks of a teacher's clip, as it was trained


@dataclass(frozen=True, slots=True)
class Question:
    """What B characters are asked to say."""

    scene: Scene
    anchor: Tensor  # uint8 [B, 3, H, W]
    truth: Truth  # of one frame at rest: where face and mouth are
    speech: Tensor  # int16 [B, samples], `Geometry.run_in` before the first frame
    begins: Tensor  # int64 [B]: before this turn nobody is heard
    geometry: Geometry

    @property
    def controls(self) -> Tensor:
        """The mouth that the speech asks for, [B, T, 6]."""
        return self.scene.mouth

    def shown(self, frames: Tensor) -> Tensor:
        """The renderer's own answer at some frames [n]: uint8 [B, n, 3, H, W]."""
        pictures = []
        for frame in frames.tolist():
            motion = replace(self.scene.motion, start=self.scene.motion.start + frame / 25)
            moment = slice(frame, frame + 1)
            scene = replace(
                self.scene,
                motion=motion,
                mouth=self.scene.mouth[:, moment],
                speaking=self.scene.speaking[:, moment],
            )
            pictures.append(render(scene, self.geometry.size).frames)
        return torch.cat(pictures, 1)


def ask(
    speaker: Speaker, geometry: Geometry, characters: int, family: Family = Family.STYLISED
) -> Question:
    """A question to unseen characters whose heads, in the renderer, keep still."""
    said = [speaker.say(number) for number in range(characters)]
    seed = torch.arange(characters)
    scene = Scene(
        family=family,
        identity=identity_seed(Split.TEST, seed),
        motion=Motion(seed, torch.zeros(characters), torch.zeros(characters)),
        mouth=torch.stack([one.controls for one in said]),
        speaking=torch.stack([one.speaking for one in said]),
    )
    rest = replace(
        scene, mouth=torch.zeros_like(scene.mouth[:, :1]), speaking=scene.speaking[:, :1]
    )
    return Question(
        scene=scene,
        anchor=reference(scene, geometry.size),
        truth=render(rest, geometry.size).truth,
        speech=torch.stack([one.speech for one in said]),
        begins=torch.stack([one.begins for one in said]),
        geometry=geometry,
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who answers: a student that streams, or a teacher."""

    name: str
    flow: Flow
    front_end: FrontEnd
    vae: Vae
    device: torch.device
    schedule: ScheduleConfig | None = None  # None: the checkpoint's own
    teacher: Origin | None = None  # how a teacher is sampled


@torch.no_grad()
def answer(
    candidate: Candidate, question: Question, *, seed: int = 0, every: int = 1
) -> Iterator[Tensor]:
    """Frames [B, 12, 3, H, W] in -1..1 of one chunk after another.

    Args:
        every: of so many chunks only the last is decoded; the decoder's memory is that of the
            whole stream.
    """
    vae, device = candidate.vae, candidate.device
    generator = torch.Generator(device).manual_seed(seed)
    with autocast(device):
        anchor, _ = vae.encode(signed(question.anchor[:, None].to(device)), State())
        anchor = anchor.float()
        _, state = vae.decode(anchor, State())
    source = _streamed if candidate.teacher is None else _clipped
    for chunk, latents in enumerate(source(candidate, question, anchor, generator)):
        with autocast(device):
            if (chunk + 1) % every:
                state = vae.warm(latents, state)
                continue
            frames, state = vae.decode(latents, state)
        yield frames.float().transpose(1, 2)


def _streamed(
    candidate: Candidate, question: Question, anchor: Tensor, generator: torch.Generator
) -> Iterator[Tensor]:
    rollout: Rollout | None = None
    for heard in _heard(candidate, question, anchor):
        with autocast(candidate.device):
            given = conditions(candidate.flow.dit, heard)
            # Scenes are the same for every chunk: the cache is begun once.
            rollout = rollout or Rollout(candidate.flow, given.scene, schedule=candidate.schedule)
            noise = noises(candidate.flow, given, generator, candidate.schedule)
            latents = rollout.draw(noise, given.audio)
        yield latents
        with autocast(candidate.device):
            rollout.remember(latents, given.audio)


def _clipped(
    candidate: Candidate, question: Question, anchor: Tensor, generator: torch.Generator
) -> Iterator[Tensor]:
    assert candidate.teacher is not None
    waiting: list[LatentClips] = []
    for heard in _heard(candidate, question, anchor):
        waiting.append(heard)
        if len(waiting) < _CLIP:
            continue
        clip = _clip_of(waiting)
        noise = torch.randn(clip.latents.shape, generator=generator, device=candidate.device)
        with autocast(candidate.device):
            drawn = candidate.teacher.carried(clip, noise)
        yield from drawn.unbind(1)
        waiting = []


def _heard(candidate: Candidate, question: Question, anchor: Tensor) -> Iterator[LatentClips]:
    """What a chunk of every character is drawn from, as clips of that one chunk."""
    config, hearing = candidate.flow.config, candidate.flow.config.hearing
    # The same question to models with other chunks.
    geometry = replace(question.geometry, frames_per_chunk=config.spec.frames_per_chunk)
    begins = geometry.chunk_of(question.begins)[:, None]
    assert hearing is not None, "a model without audio answers nothing"
    tracks = [SpeechTrack(candidate.front_end, hearing) for _ in question.speech]
    for track, speech in zip(tracks, question.speech, strict=True):
        track.hear(speech.numpy())
    faces = torch.stack([_face(box, config.grid) for box in question.truth.face_box])
    empty = anchor.new_zeros(
        len(anchor), 1, anchor.shape[1], config.stream.latents_per_chunk, *anchor.shape[3:]
    )
    for chunk in range(geometry.chunks):
        number = geometry.chunks_before + chunk
        embeddings = torch.stack([track.embeddings(number) for track in tracks])
        places = torch.tensor(list(hearing.heard(number))) // hearing.per_chunk
        # A listener's own chunk and what follows it are not heard; what follows is not known yet.
        speaks = torch.minimum(places, torch.tensor(number)) - geometry.chunks_before
        yield LatentClips(
            latents=empty,
            anchor=anchor,
            embeddings=embeddings[:, None].to(candidate.device),
            heard=is_heard(speaks, begins)[:, None].to(candidate.device),
            controls=question.controls[:, :0].to(candidate.device),
            mouth=torch.ones_like(empty[:, :, 0]),
            faces=faces.to(candidate.device),
        )


def _clip_of(chunks: list[LatentClips]) -> LatentClips:
    """Clips of one chunk each, one after another, as clips of several."""
    first = chunks[0]
    return replace(
        first,
        latents=torch.cat([one.latents for one in chunks], 1),
        embeddings=torch.cat([one.embeddings for one in chunks], 1),
        heard=torch.cat([one.heard for one in chunks], 1),
        mouth=torch.cat([one.mouth for one in chunks], 1),
    )


def _face(box: Tensor, grid: tuple[int, int]) -> Tensor:
    left, top, right, bottom = box.tolist()
    return face_mask(Rectangle(left, top, right, bottom), grid).flatten()
