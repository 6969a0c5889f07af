"""Readers learn to read, and windows around mouths keep their size."""

from __future__ import annotations

import pytest
import torch

from tests.training import small
from training.babble import Babble
from training.data.faces.expression import MOUTH
from training.data.faces.split import Split
from training.flow_task import read
from training.footage import Geometry, Studio
from training.mouth_reader import LatentReader, PixelReader, lips_apart, mouth_crop
from training.reading import grade_latents, grade_pixels, learn_latents, learn_pixels
from training.rows import Pool
from training.run import Budget

CPU = torch.device("cpu")


def test_latents_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    reader, clips = LatentReader(4, 4, width=16), small.clips(2, 2)
    before = grade_latents(reader, clips)
    pool = Pool(lambda _: clips, size=2, block=2, period=1000)
    learn_latents(reader, pool, budget=Budget(1e9, steps=150), rows=4)
    assert grade_latents(reader, clips) > max(0.5, before)


def test_pixels_can_be_learned_from_the_renderer() -> None:
    torch.manual_seed(0)
    geometry, reader = Geometry(frames=12, size=64), PixelReader()
    studio = Studio(Babble(geometry), geometry, Split.TRAIN, CPU)
    clips = studio.make([1, 2])
    pool = Pool(lambda _: clips, size=2, block=2, period=1000)
    learn_pixels(reader, pool, budget=Budget(1e9, steps=60), rows=4)
    assert grade_pixels(reader, clips)["apart"] > 0.6


def test_a_reader_reads_every_frame_of_every_clip() -> None:
    clips, reader = small.clips(2, 3), LatentReader(4, 4, width=8).eval()
    said = read(reader, clips.latents, clips)
    assert said.shape == clips.controls.shape
    changed = clips.latents.clone()
    changed[1, 2, :, 0] += 1  # latent frame 6 of the second clip: video frames 24 to 27
    moved = (read(reader, changed, clips) != said).any(-1)
    assert not moved[0].any()
    assert moved[1].nonzero()[:, 0].tolist() == [24, 25, 26, 27]


def test_a_window_is_centred_on_its_mouth_and_keeps_its_size() -> None:
    frames = torch.full((2, 3, 100, 100), -1.0)
    frames[:, :, 70:80, 40:60] = 1
    narrow, wide = torch.tensor([0.4, 0.7, 0.6, 0.8]), torch.tensor([0.3, 0.65, 0.7, 0.85])
    crops = mouth_crop(frames, torch.stack([narrow, wide]))
    assert crops.shape == (2, 3, *PixelReader.SIZE)
    torch.testing.assert_close(crops[0], crops[1])
    lit = (crops[0, 0] > 0).nonzero()
    assert lit.float().mean(0).tolist() == pytest.approx([31.5, 47.5], abs=0.6)


def test_pressed_lips_are_not_apart() -> None:
    controls = torch.zeros(3, 6)
    controls[:, MOUTH.index("open")] = torch.tensor([0.0, 0.8, 0.8])
    controls[:, MOUTH.index("press")] = torch.tensor([0.0, 0.0, 1.3])
    assert lips_apart(controls).tolist() == pytest.approx([0, 0.8, 0])
