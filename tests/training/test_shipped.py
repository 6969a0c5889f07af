"""The model in the repository: what a clean checkout streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from services.score.contract import Rectangle
from training import stream
from training.avatars import CAST, portrait
from training.data.faces.family import Family
from training.data.faces.split import split_of

TINY = Path(__file__).resolve().parents[2] / "models" / "tiny"
LARGEST = 40e6  # bytes of all files


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) < LARGEST


def test_characters_are_named_unseen_and_of_both_families() -> None:
    entries = json.loads((TINY / "avatars" / "index.json").read_text())
    assert len({entry["name"] for entry in entries}) == len(entries) >= 8
    assert {entry["family"] for entry in entries} == {family.value for family in Family}
    assert bool(split_of(torch.tensor([entry["seed"] for entry in entries])).all())
    for entry in entries:
        assert stream.read_picture(TINY / "avatars" / entry["file"], 192, 192).shape[2] == 3


def test_a_portrait_is_the_renderers() -> None:
    first = CAST[0]
    drawn = portrait(first, 192).permute(1, 2, 0).float()
    shipped = stream.read_picture(TINY / "avatars" / first.file, 192, 192).float()
    assert float((drawn - shipped).abs().mean()) < 4  # of 255: shrunk from twice the size


@pytest.mark.parametrize("name", ["welcome.wav", "dashwood.wav"])
def test_it_draws_whom_it_is_shown_and_moves_the_mouth(name: str) -> None:
    score, vae = stream.engines(TINY)
    spec = score.spec
    picture = stream.read_picture(TINY / "avatars" / CAST[0].file, spec.width, spec.height)
    speech = stream.read_speech(TINY / "speech" / name, spec.sample_rate)
    speech = speech[: 4 * spec.samples_per_chunk]
    face = Rectangle(0.18, 0.22, 0.82, 0.97)
    frames = torch.cat(list(stream.talk(score, vae, picture, face, speech))).float()
    assert frames.shape == (4 * spec.frames_per_chunk, spec.height, spec.width, 3)
    # The corners of the picture stay; the mouth does not.
    corner, mouth = frames[:, :24, :24], frames[:, 130:170, 65:127]
    assert float((corner - picture[:24, :24].float()).abs().mean()) < 12
    assert float(mouth.diff(dim=0).abs().mean()) > 3 * float(corner.diff(dim=0).abs().mean())
