"""Teacher and student are one model; a rollout in training is the stream that serving draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from services.score.attention import KeysValues
from services.score.config import ScheduleConfig
from services.score.denoise import clean_from, noised
from services.score.model import Dit
from tests.training import small
from training import losses
from training.flow import (
    Flow,
    FlowLoss,
    conditions,
    disturbed,
    initialised,
    levels,
    mouth_weight,
)
from training.kernels import products, quick_to_learn
from training.latents import LatentClips
from training.rollout import Rollout, noises, speech_of, streamed
from training.sampling import from_noise

ROWS, CHUNKS = 2, 3
NOBODY = torch.zeros(ROWS, dtype=torch.bool)


def dit(seed: int = 0) -> Dit:
    torch.manual_seed(seed)
    model = initialised(Dit(small.dit()))
    with torch.no_grad():
        for parameter in model.parameters():
            # Nothing may hide behind a zero.
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_a_fresh_model_shows_the_reference_picture() -> None:
    clips = small.clips(ROWS, CHUNKS)
    for sight in ("whole", "causal"):
        flow = Flow(initialised(Dit(small.dit())), sight)
        given = conditions(flow.dit, clips, deaf=NOBODY, blind=NOBODY)
        noisy = torch.randn_like(clips.latents.float())
        seen = flow.believed(noisy, torch.ones(ROWS), given, context=noisy)
        torch.testing.assert_close(seen, clips.anchor[:, None].float().expand_as(seen))


def test_a_teacher_sees_the_future_and_a_student_does_not() -> None:
    clips, model = small.clips(ROWS, CHUNKS), dit()
    noisy = small.normal(*clips.latents.shape)
    changed = noisy.clone()
    changed[:, -1] += 1

    def effect(flow: Flow) -> list[bool]:
        given = conditions(model, clips, deaf=NOBODY, blind=NOBODY)
        level, context = torch.full((ROWS,), 0.6), clips.latents.float()
        before = flow.believed(noisy, level, given, context=context)
        after = flow.believed(changed, level, given, context=context)
        return [not torch.equal(before[:, k], after[:, k]) for k in range(CHUNKS)]

    with torch.no_grad():
        assert effect(Flow(model, "whole")) == [True] * CHUNKS
        assert effect(Flow(model, "causal")) == [False, False, True]


def test_the_deaf_do_not_hear_and_the_blind_do_not_see() -> None:
    clips, other = small.clips(ROWS, CHUNKS), small.clips(ROWS, CHUNKS, seed=9)
    flow, noisy = Flow(dit(), "whole"), small.normal(ROWS, CHUNKS, 4, 3, 4, 4)

    def seen(clips: LatentClips, deaf: Tensor, blind: Tensor) -> Tensor:
        with torch.no_grad():
            given = conditions(flow.dit, clips, deaf=deaf, blind=blind)
            return flow.believed(noisy, torch.full((ROWS,), 0.5), given, context=noisy)

    one = torch.tensor([True, False])
    louder = small.mixed(clips, embeddings=other.embeddings)
    assert unchanged(seen(clips, one, NOBODY), seen(louder, one, NOBODY)) == [True, False]
    elsewhere = small.mixed(clips, anchor=other.anchor)
    assert unchanged(seen(clips, NOBODY, one), seen(elsewhere, NOBODY, one)) == [True, False]


def unchanged(before: Tensor, after: Tensor) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(before, after, strict=True)]


def test_silence_is_heard_and_deafness_is_not_silence() -> None:
    clips, flow = small.clips(ROWS, CHUNKS), Flow(dit(), "whole")
    silent = small.mixed(clips, heard=torch.zeros_like(clips.heard))
    noisy, level = small.normal(ROWS, CHUNKS, 4, 3, 4, 4), torch.full((ROWS,), 0.5)
    with torch.no_grad():
        listening = conditions(flow.dit, silent, deaf=NOBODY, blind=NOBODY)
        deaf = conditions(flow.dit, silent, deaf=~NOBODY, blind=NOBODY)
        a, b = (flow.believed(noisy, level, given, context=noisy) for given in (listening, deaf))
    assert not torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_pass_that_learns_sees_what_serving_sees(last: int, before: int) -> None:
    clips, flow = small.clips(ROWS, CHUNKS), Flow(dit(), "causal")
    given = conditions(flow.dit, clips, deaf=NOBODY, blind=NOBODY)
    schedule = ScheduleConfig(levels=(1.0, 0.5)[: last + 1])
    rollout = Rollout(flow, given.scene, schedule=schedule)
    for chunk in range(before):
        rollout.remember(clips.latents[:, chunk].float(), speech_of(given, chunk, CHUNKS))
    noise = noises(flow, given, torch.Generator().manual_seed(3), schedule)
    speech = speech_of(given, before, CHUNKS)
    learned = rollout.learn(noise, speech, last=last)
    assert learned.requires_grad
    torch.testing.assert_close(learned.detach(), rollout.draw(noise, speech), rtol=0, atol=1e-5)


def test_a_rollout_over_real_contexts_is_the_batched_clip() -> None:
    clips, flow = small.clips(ROWS, CHUNKS), Flow(dit(), "causal")
    level, noise = 0.7, small.normal(ROWS, CHUNKS, 4, 3, 4, 4)
    clean = clips.latents.float()
    noisy = noised(clean, noise, level)
    with torch.no_grad():
        given = conditions(flow.dit, clips, deaf=NOBODY, blind=NOBODY)
        whole = flow.believed(noisy, torch.full((ROWS,), level), given, context=clean)
        rollout = Rollout(flow, given.scene)
        for chunk in range(CHUNKS):
            speech = speech_of(given, chunk, CHUNKS)
            said = rollout._predict(noisy[:, chunk], level, speech, rollout._memory())
            anchor = given.scene.anchor
            one = clean_from(flow.config, said, noisy[:, chunk], level, anchor)
            torch.testing.assert_close(one, whole[:, chunk], rtol=0, atol=1e-5)
            rollout.remember(clean[:, chunk], speech)


def test_streams_of_a_batch_are_streams_of_one() -> None:
    clips, flow = small.clips(ROWS, CHUNKS), Flow(dit(), "causal")
    with torch.no_grad():
        given = conditions(flow.dit, clips, deaf=NOBODY, blind=NOBODY)
        drawn = streamed(flow, given, CHUNKS, torch.Generator().manual_seed(1))
    assert drawn.shape == clips.latents.shape
    assert not torch.allclose(drawn[0], drawn[1])


def test_the_first_chunks_of_a_stream_are_the_stream() -> None:
    clips, flow = small.clips(ROWS, CHUNKS), Flow(dit(), "causal")
    with torch.no_grad():
        given = conditions(flow.dit, clips, deaf=NOBODY, blind=NOBODY)
        whole = streamed(flow, given, CHUNKS, torch.Generator().manual_seed(1))
        one = streamed(flow, given, CHUNKS, torch.Generator().manual_seed(1), first=1)
    torch.testing.assert_close(one, whole[:, :1])


def test_attention_that_learns_quickly_is_attention() -> None:
    """Every attention is replaced, and neither what it says nor what it teaches changes."""
    clips, level = small.clips(ROWS, CHUNKS), torch.full((ROWS,), 0.7)
    clean, noise = clips.latents.float(), small.normal(*clips.latents.shape)
    fused, plain = Flow(dit(), "causal"), Flow(quick_to_learn(dit()), "causal")
    kernels = [m.kernel for m in plain.dit.modules() if hasattr(m, "kernel")]
    assert len(kernels) == 3
    assert set(kernels) == {products}
    for flow in (fused, plain):
        given = conditions(flow.dit, clips, deaf=NOBODY, blind=NOBODY)
        flow.believed(noise, level, given, context=clean).square().mean().backward()  # type: ignore[no-untyped-call]
    for name, p in fused.dit.named_parameters():
        other = plain.dit.get_parameter(name)
        assert p.grad is None or other.grad is not None, name
        if p.grad is not None and other.grad is not None:
            torch.testing.assert_close(other.grad, p.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_one_step_flow_goes_to_what_the_model_believes() -> None:
    clips, flow = small.clips(ROWS, CHUNKS), Flow(dit(), "whole")
    noise = small.normal(*clips.latents.shape)
    with torch.no_grad():
        given = conditions(flow.dit, clips, deaf=NOBODY, blind=NOBODY)
        null = conditions(flow.dit, clips, deaf=~NOBODY, blind=NOBODY)
        believed = flow.believed(noise, torch.ones(ROWS), given, context=noise)
        one = from_noise(flow, clips, given, None, noise, steps=1, scale=1.0)
        guided = from_noise(flow, clips, given, null, noise, steps=1, scale=3.0)
        nothing = flow.believed(noise, torch.ones(ROWS), null, context=noise)
    torch.testing.assert_close(one, believed)
    torch.testing.assert_close(guided, losses.guided(believed, nothing, 3.0))


def test_levels_and_disturbed_contexts() -> None:
    loss = FlowLoss(shift=3.0, lowest=0.03125)
    generator = torch.Generator().manual_seed(0)
    drawn = levels(loss, 4000, generator)
    assert 0.03125 <= float(drawn.min()) <= float(drawn.max()) <= 1
    assert float(drawn.median()) == pytest.approx(0.75, abs=0.02)  # one half, shifted
    clean = torch.zeros(200, 2, 4, 3, 4, 4)
    off = disturbed(loss, clean, generator)
    untouched = (off == 0).flatten(2).all(-1).float().mean()
    assert float(untouched) == pytest.approx(0.2, abs=0.06)
    assert 0.05 < float(off.std()) < 0.2


def test_mouth_weights_have_mean_one() -> None:
    clips = small.clips(ROWS, CHUNKS)
    weight = mouth_weight(FlowLoss(mouth=4.0), clips)
    assert float(weight.mean()) == pytest.approx(1.0)
    assert float(weight.max() / weight.min()) == pytest.approx(4.0)


def test_speech_of_one_chunk() -> None:
    audio = [KeysValues(torch.arange(6.0)[:, None], torch.arange(6.0)[:, None])]
    given = conditions(dit(), small.clips(2, 3), deaf=NOBODY, blind=NOBODY)
    picked = speech_of(type(given)(given.scene, audio), 1, 3)[0]
    assert picked.k.flatten().tolist() == [1.0, 4.0]
