"""What is learned from is what serving sees: the same speech heard, the same stream decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.score.contract import Mode, Speech
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.hearing import Ear
from services.vae.model import Vae
from services.vae.state import State
from tests.training import small
from training.babble import Babble
from training.beginning import begun
from training.data.faces.split import Split
from training.footage import Footage, Geometry, Studio
from training.latents import Encoder, LatentClips
from training.rows import Keep, Pool, Shelf, joined, packed, picked, put, unpacked
from training.vae import signed

CPU = torch.device("cpu")
GEOMETRY = Geometry(frames=48, size=32)


def footage(begins: int) -> Footage:
    """A clip that says noise; nobody is heard before the chunk `begins`."""
    made = Studio(Babble(GEOMETRY), GEOMETRY, Split.TRAIN, CPU).make([1])
    speech = np.random.default_rng(0).normal(0, 3000, GEOMETRY.samples).astype(np.int16)
    if begins:
        speech[: GEOMETRY.run_in + begins * 7680] = 0
    return replace(made, speech=torch.from_numpy(speech)[None], begins=torch.tensor([begins]))


def encoder() -> Encoder:
    torch.manual_seed(0)
    vae = begun(Vae(small.vae())).eval().requires_grad_(False)
    return Encoder(vae, ears(), small.dit(), GEOMETRY, CPU)


def ears() -> SpeechEncoder:
    torch.manual_seed(1)
    return SpeechEncoder(small.FRONT_END).requires_grad_(False)


@pytest.mark.parametrize("begins", [0, 2, 4])
def test_clips_hear_what_a_session_hears(begins: int) -> None:
    clip, config = footage(begins), small.dit()
    assert config.hearing is not None
    clips, pcm = encoder().encode(clip), clip.speech[0].numpy()
    ear = Ear(ears(), config.hearing, config.spec)
    length = 7680 + config.spec.lookahead_samples
    for number in range(GEOMETRY.chunks_before + GEOMETRY.chunks):
        chunk = number - GEOMETRY.chunks_before
        mode = Mode.SPEAKING if chunk >= begins else Mode.LISTENING
        if begins == 0:
            mode = Mode.SPEAKING  # it had begun before the clip did
        embeddings, heard = ear.hear(number, Speech(mode, pcm[number * 7680 :][:length]))
        if chunk < 0:
            continue
        assert torch.equal(clips.heard[0, chunk], heard)
        # Where nobody is heard, embeddings are not looked at.
        ours = clips.embeddings[0, chunk].float()[heard]
        torch.testing.assert_close(ours, embeddings[heard], rtol=2e-3, atol=2e-3)


def test_latents_are_those_of_the_stream_that_begins_with_the_reference() -> None:
    clip = footage(0)
    clips = encoder().encode(clip)
    assert clips.latents.shape == (1, 4, 4, 3, 4, 4)
    torch.manual_seed(0)
    vae = begun(Vae(small.vae())).eval()
    frames = signed(torch.cat([clip.anchor[:, None], clip.frames], 1))
    with torch.no_grad():
        latents, _ = vae.encode(frames, State())
    torch.testing.assert_close(clips.anchor.float(), latents[:, :, :1], rtol=0, atol=0.05)
    flat = clips.latents[0].float().transpose(0, 1).flatten(1, 2)
    torch.testing.assert_close(flat, latents[0, :, 1:], rtol=0, atol=0.05)


def test_the_mouth_is_where_it_is() -> None:
    clip = footage(0)
    clips = encoder().encode(clip)
    left, top, right, bottom = clip.truth.mouth_box[0].mean(0).tolist()
    weight = clips.mouth[0].mean((0, 1))
    row, column = divmod(int(weight.argmax()), 4)
    assert left - 0.25 < (column + 0.5) / 4 < right + 0.25
    assert top - 0.25 < (row + 0.5) / 4 < bottom + 0.25
    assert 1 <= float(weight.min()) <= float(weight.max()) <= 2
    assert set(clips.faces.flatten().tolist()) <= {0.0, 1.0}


def test_rows_are_picked_joined_and_put() -> None:
    clips = small.clips(3, 2)
    back = joined([picked(clips, slice(0, 1)), picked(clips, torch.tensor([1, 2]))])
    for name, tensor in packed(back).items():
        assert torch.equal(tensor, packed(clips)[name]), name
    other = small.clips(1, 2, seed=5)
    put(clips, 1, other)
    assert torch.equal(clips.anchor[1], other.anchor[0])
    assert torch.equal(clips.anchor[2], back.anchor[2])


def test_nested_batches_keep_their_places(tmp_path: Path) -> None:
    clip = footage(0)
    names = packed(clip)
    assert "truth.lips.upper_in" in names
    shelf = Shelf(Footage, lambda _: clip, tmp_path)
    shelf.make([7])
    kept = shelf.make([7])
    for name, tensor in packed(kept).items():
        assert torch.equal(tensor, names[name]), name
    assert torch.equal(unpacked(Footage, names).truth.lips.lower_in, clip.truth.lips.lower_in)


def test_what_is_kept_is_made_once_and_then_begins_anew(tmp_path: Path) -> None:
    made: list[int] = []

    def make(numbers: Sequence[int]) -> LatentClips:
        made.extend(numbers)
        return small.clips(1, 1, seed=numbers[0])

    keep = Keep(tmp_path, rows=3)
    first = keep.of("a").made(LatentClips, make)([0, 1, 2, 3])
    again = keep.of("a").made(LatentClips, make)([5, 4])
    assert made == [0, 1, 2]
    assert torch.equal(again.latents, first.latents[[2, 1]])
    keep.of("b").made(LatentClips, make)([0])
    assert made == [0, 1, 2, 0]


@pytest.mark.parametrize("step", [0, 4, 11])
def test_a_pool_entered_anywhere_holds_what_it_held(step: int) -> None:
    def make(numbers: Sequence[int]) -> LatentClips:
        return joined([small.clips(1, 1, seed=number) for number in numbers])

    watched, entered = (Pool(make, size=6, block=2, period=3) for _ in range(2))
    for passed in range(step + 1):
        watched.at(passed)
    assert torch.equal(watched.at(step).latents, entered.at(step).latents)
    newest = 6 + step // 3 * 2
    held = {float(x) for x in entered.at(step).anchor[:, 0, 0, 0, 0]}
    series = joined([small.clips(1, 1, seed=number) for number in range(newest - 6, newest)])
    assert held == {float(x) for x in series.anchor[:, 0, 0, 0, 0]}
