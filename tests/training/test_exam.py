"""An examined stream is a session's stream: chunk by chunk, and nothing but the past."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from services.score.config import PositionsConfig, StreamConfig
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.model import Dit
from services.vae.model import Vae
from tests.training import small
from training.babble import Babble
from training.distil import Origin
from training.evaluate import kept, moments, sheet, watch
from training.exam import Candidate, Question, answer, ask
from training.flow import Flow, initialised
from training.footage import Geometry
from training.mouth_reader import PixelReader

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

CPU = torch.device("cpu")
GEOMETRY = Geometry(frames=48, size=32)


def candidate(sight: str = "causal", *, latents_per_chunk: int = 3) -> Candidate:
    torch.manual_seed(0)
    config = small.dit(
        stream=StreamConfig(fps=25, width=32, height=32, latents_per_chunk=latents_per_chunk),
        positions=PositionsConfig(own=1 + latents_per_chunk),
    )
    dit = initialised(Dit(config))
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    flow = Flow(dit.requires_grad_(False), sight)  # type: ignore[arg-type]
    vae = Vae(small.vae()).eval().requires_grad_(False)
    front_end = SpeechEncoder(small.FRONT_END).requires_grad_(False)
    teacher = Origin(flow, steps=2) if sight == "whole" else None
    return Candidate("small", flow, front_end, vae, CPU, teacher=teacher)


def question(seed: int = 0) -> Question:
    asked = ask(Babble(GEOMETRY), GEOMETRY, 2)
    noise = torch.randn(asked.speech.shape, generator=torch.Generator().manual_seed(seed))
    return replace(asked, speech=(noise * 3000).to(torch.int16))


def test_an_answer_does_not_know_the_future() -> None:
    first = question()
    later = replace(first, speech=first.speech.clone())
    # Beyond what the third chunk may look ahead to.
    later.speech[:, GEOMETRY.run_in + 3 * 7680 + 640 * 4 :] = 0
    a, b = (list(answer(candidate(), asked)) for asked in (first, later))
    assert [torch.equal(x, y) for x, y in zip(a, b, strict=True)] == [True, True, True, False]
    assert a[0].shape == (2, 12, 3, 32, 32)


def test_nobody_is_heard_before_a_turn_begins() -> None:
    first = replace(question(), begins=torch.tensor([2, 2]))
    other = replace(question(seed=5), begins=torch.tensor([2, 2]))
    a, b = (list(answer(candidate(), asked)) for asked in (first, other))
    same = [torch.equal(x, y) for x, y in zip(a, b, strict=True)]
    assert same == [True, True, False, False]


def test_a_model_with_other_chunks_hears_the_same_question() -> None:
    first = replace(question(), begins=torch.tensor([2, 2]))
    other = replace(question(seed=5), begins=torch.tensor([2, 2]))
    short = candidate(latents_per_chunk=1)
    a, b = (list(answer(short, asked)) for asked in (first, other))
    assert a[0].shape == (2, 4, 3, 32, 32)
    same = [torch.equal(x, y) for x, y in zip(a, b, strict=True)]
    assert same == 6 * [True] + 6 * [False]


def test_a_long_answer_may_be_looked_at_now_and_then() -> None:
    """What is decoded of it is what would have been seen."""
    whole = list(answer(candidate(), question()))
    some = list(answer(candidate(), question(), every=2))
    assert len(some) == 2
    for seen, expected in zip(some, whole[1::2], strict=True):
        torch.testing.assert_close(seen, expected, rtol=0, atol=2e-2)  # 16-bit arithmetic


def test_a_teacher_answers_clip_by_clip() -> None:
    frames = list(answer(candidate("whole"), question()))
    assert len(frames) == 4
    assert all(bool(chunk.isfinite().all()) for chunk in frames)


def test_what_is_watched_and_shown() -> None:
    asked, judge = question(), PixelReader().eval().requires_grad_(False)
    show = moments(asked)
    seen = watch(candidate(), asked, judge, show)
    assert seen.controls.shape == (2, 48, 6)
    assert seen.moved.shape == (2, 48)
    assert len(seen.kept) == len(seen.shift) == 4
    assert sorted(seen.frames) == sorted(set(show))
    assert sheet(asked, [seen], show).shape == (3, 4 * 32, 10 * 32)


def test_what_a_vae_keeps_is_measured_on_the_renderers_own_answer() -> None:
    asked = question()
    result = kept(candidate().vae, asked, frames=4)
    assert 0 < result.psnr < 30, "random weights draw nobody"
    assert -1 < result.ssim < 1
    assert f"{result.psnr:.1f} dB" in str(result)
