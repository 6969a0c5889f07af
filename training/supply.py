"""From folders to batches: the corpus, the VAE and the speech encoder of a run, put together.

Serves the transformer's training scripts and the evaluation, which share one set of arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from services.score.checkpoint.loading import load
from services.score.checkpoint.opening import open_checkpoint
from services.score.config import DitConfig
from services.score.frontend.config import MelFrontEnd
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.model import Dit
from services.vae import checkpoint
from services.vae.model import Vae
from training.data.faces.split import Split
from training.data.speech.corpus import Corpus
from training.data.speech.crops import SpeechSet
from training.data.speech.split import Test, Train
from training.footage import Footage, Geometry, Studio
from training.latents import Encoder, LatentClips
from training.rows import Keep, Pool
from training.speaker import CorpusSpeaker, test_plan, training_plan


@dataclass(frozen=True, slots=True)
class Sources:
    """What a run is fed from."""

    speech: Path  # the speech corpus
    vae: Path  # a VAE's folder
    front_end: Path  # a speech encoder's weights
    keep: Keep | None  # where clips are kept once made; None makes them anew
    still: float  # share of clips whose head does not move
    human: float  # share of clips of the family that costs ten times as much to draw
    device: torch.device

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--speech", type=Path, required=True, help="folder of the speech corpus")
        add("--vae", type=Path, required=True, help="folder of the VAE")
        add("--front-end", type=Path, required=True, help="the speech encoder's weights")
        add(
            "--still", type=float, default=0.35, help="share of heads that keep still (%(default)s)"
        )
        add("--human", type=float, default=0.3, help="share of human faces (%(default)s)")
        Keep.arguments(parser)
        add("--device", type=torch.device, default=torch.device("cpu"))

    @staticmethod
    def of(asked: argparse.Namespace) -> Sources:
        keep = Keep.asked(asked)
        return Sources(
            speech=asked.speech,
            vae=asked.vae,
            front_end=asked.front_end,
            keep=keep,
            still=asked.still,
            human=asked.human,
            device=asked.device,
        )


@dataclass(frozen=True, slots=True)
class Supply:
    """What training learns from and what it is looked at with."""

    pool: Pool[LatentClips]
    held_out: LatentClips  # unseen characters, voices and lines
    vae: Vae
    front_end: SpeechEncoder


def supply(
    sources: Sources, config: DitConfig, *, pool: int, block: int, period: int, held_out: int
) -> Supply:
    """Open everything. Clips are made when they are first wanted."""
    geometry = Geometry(frames_per_chunk=config.spec.frames_per_chunk, size=config.stream.width)
    corpus = Corpus.open(sources.speech)
    vae, front_end = checkpoint.load(sources.vae), speech_encoder(sources.front_end, config)
    encoder = Encoder(vae, front_end, config, geometry, sources.device)
    judging = CorpusSpeaker(SpeechSet.of(corpus, Test), geometry, test_plan())
    keep, device = sources.keep, sources.device
    learned: Callable[[Sequence[int]], Footage] = studio(
        corpus, geometry, device, still=sources.still, human=sources.human, compiled=False
    ).make
    judged = Studio(judging, geometry, Split.TEST, device, human=sources.human).make
    if keep is not None:
        learned = keep.of("footage").made(Footage, learned)  # as `training.draw` leaves it

    def train(numbers: Sequence[int]) -> LatentClips:
        return encoder.encode(learned(numbers))

    def test(numbers: Sequence[int]) -> LatentClips:
        return encoder.encode(judged(numbers))

    series = train if keep is None else keep.of("latents").made(LatentClips, train)
    unseen = test if keep is None else keep.of("unseen").made(LatentClips, test)
    return Supply(
        pool=Pool(series, size=pool, block=block, period=period),
        held_out=unseen(range(held_out)),
        vae=vae,
        front_end=front_end,
    )


def studio(
    corpus: Corpus,
    geometry: Geometry,
    device: torch.device,
    *,
    still: float,
    human: float,
    compiled: bool,
) -> Studio:
    """What draws the clips that a transformer learns from."""
    speaker = CorpusSpeaker(SpeechSet.of(corpus, Train), geometry, training_plan())
    return Studio(
        speaker, geometry, Split.TRAIN, device, still=still, human=human, compiled=compiled
    )


def speech_encoder(weights: Path, config: DitConfig) -> SpeechEncoder:
    """The trained front end of a model with one of its own."""
    assert config.audio is not None, "the model hears"
    assert isinstance(config.audio.front_end, MelFrontEnd), "through a front end of its own"
    encoder = SpeechEncoder(config.audio.front_end)
    encoder.load_state_dict(load_file(weights))
    return encoder.eval().requires_grad_(False)


def opened(folder: Path, device: torch.device) -> Dit:
    """A model of another run, ready to learn."""
    dit = load(open_checkpoint(folder), device=device, dtype=torch.float32)
    return dit.train().requires_grad_(True)
