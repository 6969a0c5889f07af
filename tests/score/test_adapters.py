"""Audio reaches the right tokens and nothing else; each design against a case done by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from services.score.adapters import (
    FantasyTalkingProjection,
    MultiTalkProjection,
    OwnQuery,
    PaperProjection,
    SharedQuery,
    listen,
    projection,
)
from services.score.attention import KeysValues, sdpa
from services.score.cache import Handed
from services.score.config import FantasyTalkingAudio, MultiTalkAudio, PaperAudio
from services.score.model import Dit
from services.score.passes import Scene
from tests.score import small

Adapter = PaperAudio | FantasyTalkingAudio | MultiTalkAudio


def predict(dit: Dit, scene: Scene, embeddings: Tensor, heard: Tensor) -> Tensor:
    """[C, F, h, w] of one chunk without past."""
    passes, times = small.passes(dit), dit.embed_time(torch.tensor([0.75]))
    memory = [Handed() for _ in range(dit.config.layers)]
    noisy = small.latents(dit.config, 1)
    return passes.denoise(noisy, scene, times, dit.hear(embeddings, heard), memory)[0]


def token_change(a: Tensor, b: Tensor) -> Tensor:
    """Largest change per token: [F, N]."""
    change = (a - b).abs().amax(0)
    return change.unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2)).flatten(1)


@pytest.mark.parametrize("adapter", small.ADAPTERS, ids=lambda a: a.kind)
def test_without_self_attention_speech_moves_only_its_speakers_face(adapter: Adapter) -> None:
    config = small.config(adapter=adapter)
    dit = small.model(config)
    for block in dit.layers():  # tokens may not talk to each other
        torch.nn.init.zeros_(block.self_attn.o.weight)
    with torch.inference_mode():
        scene = small.scene(dit, speakers=2)
        embeddings, heard = small.speech(config, 1, speakers=2)
        heard[:] = True
        before = predict(dit, scene, embeddings, heard)
        for speaker in range(2):
            other = embeddings.clone()
            other[:, speaker] += 1
            moved = token_change(before, predict(dit, scene, other, heard)) > 0
            assert scene.faces is not None
            face = scene.faces[0, speaker] > 0
            assert bool((moved == face).all()), "moves its own face, all of it, and nothing else"


@pytest.mark.parametrize("adapter", small.ADAPTERS, ids=lambda a: a.kind)
def test_a_latent_frame_hears_its_window_alone(adapter: Adapter) -> None:
    config = small.config(adapter=adapter)
    assert config.audio is not None
    dit = small.model(config)
    for block in dit.layers():
        torch.nn.init.zeros_(block.self_attn.o.weight)
    with torch.inference_mode():
        scene = small.scene(dit)
        embeddings, heard = small.speech(config, 1)
        heard[:] = True
        before = predict(dit, scene, embeddings, heard)
        for n in range(embeddings.shape[2]):
            other = embeddings.clone()
            other[:, :, n] += 1
            moved = token_change(before, predict(dit, scene, other, heard)).amax(1) > 0
            window, step = config.audio.window, config.audio.per_latent
            expected = [f * step <= n < f * step + window for f in range(3)]
            assert moved.tolist() == expected


@pytest.mark.parametrize("adapter", small.ADAPTERS, ids=lambda a: a.kind)
@pytest.mark.parametrize("silence", ["zero", "learned"])
def test_silent_speakers_get_the_silence_embedding(
    adapter: Adapter, silence: Literal["zero", "learned"]
) -> None:
    config = small.config(adapter=adapter)
    assert config.audio is not None
    module = projection(replace(config.audio, silence=silence), config.dim)
    if silence == "learned":
        torch.nn.init.normal_(module.silence)
    embeddings, _ = small.speech(config, 2, speakers=2)
    nobody = torch.zeros(embeddings.shape[:3], dtype=torch.bool)
    quiet = module(embeddings, nobody)
    said = module(module.silence.expand_as(embeddings), ~nobody)
    torch.testing.assert_close(quiet, said)
    names = dict(module.named_parameters())
    assert ("silence" in names) is (silence == "learned")
    assert ("silence" in module.state_dict()) is (silence == "learned")


def test_listening_is_attention_weighted_by_the_face() -> None:
    """Two frames, two tokens each, two speakers with one and the same key: softmax of one is 1."""
    q = torch.randn(1, 4, 1, 2)
    k = torch.randn(1, 2, 2, 1, 1, 2)
    v = torch.arange(8.0).view(1, 2, 2, 1, 1, 2)  # [B, S, F, A, H, D]
    faces = torch.tensor([[[1.0, 0.0], [0.5, 1.0]]])  # [B, S, N]
    out = listen(sdpa, q, KeysValues(k, v), faces)
    one, two = v[0, 0].view(2, 1, 2), v[0, 1].view(2, 1, 2)  # per frame
    expected = torch.stack([one + 0.5 * two, two], 1).view(4, 1, 2)
    torch.testing.assert_close(out[0], expected)


def test_fantasytalking_by_hand() -> None:
    audio = small.config(adapter=FantasyTalkingAudio(width=2)).audio
    assert audio is not None
    module = cast(FantasyTalkingProjection, projection(audio, 48))
    torch.nn.init.zeros_(module.proj.weight)
    with torch.no_grad():
        module.proj.weight[0, 0], module.proj.weight[1, 1] = 1.0, 1.0
    windows = torch.tensor([3.0, 1.0]).repeat(5).expand(1, 1, 1, audio.window, 10)
    # A norm over two numbers gives +1 and -1, but for eps.
    torch.testing.assert_close(
        module.tokens(windows), torch.tensor([1.0, -1.0]).expand(1, 1, 1, audio.window, 2)
    )
    injection = SharedQuery(4, 2, 2)
    with torch.no_grad():
        injection.k_proj.weight.copy_(torch.arange(8.0).view(4, 2))
    tokens = torch.tensor([1.0, -1.0]).view(1, 1, 1, 1, 2)
    keys = injection.keys_values(tokens).k  # rows (0,1) (2,3) (4,5) (6,7) times (1,-1)
    assert keys.flatten().tolist() == [-1.0, -1.0, -1.0, -1.0]
    assert keys.shape == (1, 1, 1, 1, 2, 2)


def test_multitalk_by_hand() -> None:
    audio = small.config(adapter=MultiTalkAudio(hidden=16, tokens=3, width=12)).audio
    assert audio is not None
    module = cast(MultiTalkProjection, projection(audio, 48))
    windows = torch.randn(1, 1, 1, audio.window, 10)
    flat = torch.cat([windows[0, 0, 0, n] for n in range(audio.window)])
    hidden = F.relu(F.linear(flat, module.proj1_vf.weight, module.proj1_vf.bias))
    hidden = F.relu(F.linear(hidden, module.proj2.weight, module.proj2.bias))
    tokens = F.linear(hidden, module.proj3.weight, module.proj3.bias).view(3, 12)
    torch.testing.assert_close(module.tokens(windows)[0, 0, 0], F.layer_norm(tokens, (12,)))

    attention = OwnQuery(8, 2, 12)
    x, faces = torch.randn(1, 4, 8), torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    kv = F.linear(tokens, attention.kv_linear.weight, attention.kv_linear.bias)
    k, v = kv[:, :8].view(3, 2, 4), kv[:, 8:].view(3, 2, 4)
    q = F.linear(x[0], attention.q_linear.weight, attention.q_linear.bias).view(4, 2, 4)
    weights = torch.einsum("nhd,ahd->hna", q, k).div(2).softmax(-1)
    answer = torch.einsum("hna,ahd->nhd", weights, v).flatten(1)
    expected = F.linear(answer, attention.proj.weight, attention.proj.bias)
    expected[3] = 0  # outside the face not even the bias acts
    got = attention(x, attention.keys_values(tokens.view(1, 1, 1, 3, 12)), faces)[0]
    torch.testing.assert_close(got, expected)


def test_paper_tokens_know_their_place_in_the_window() -> None:
    config = small.config()
    assert config.audio is not None
    module = projection(config.audio, config.dim)
    assert isinstance(module, PaperProjection)
    windows = torch.randn(1, 1, 1, 1, 10).expand(1, 1, 1, config.audio.window, 10)
    tokens = module.tokens(windows)[0, 0, 0]
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
