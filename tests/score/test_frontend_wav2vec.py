"""wav2vec 2.0 in windows: what the whole network says, layer by layer, from local folders alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2ForCTC

from services.runtime.weights import BadCheckpoint
from services.score.frontend.config import Wav2Vec2FrontEnd
from services.score.frontend.features import whole_clip
from services.score.frontend.wav2vec import Wav2Vec, load_wav2vec, normalised
from tests.score.frontends import network, speech

CPU = torch.device("cpu")


@pytest.mark.parametrize("stable", [False, True], ids=["group norm", "layer norm"])
@pytest.mark.parametrize("every", [1, 2])
def test_one_window_over_all_is_the_network_itself(stable: bool, every: int) -> None:
    clip = speech(320 * 20 + 80)
    model = network(stable=stable)
    hidden = model.feature_extractor(normalised(clip)).transpose(1, 2)[:, ::every]
    states = _states(model, hidden, stable=stable)
    config = Wav2Vec2FrontEnd(states="all", every=every, left=0, right=0, block=20 // every)
    front = Wav2Vec(model, config)
    got, _ = front.push(clip, front.start(0))
    assert got.shape == (1, 20 // every, 4, 16)
    for layer, expected in enumerate(states):
        torch.testing.assert_close(got[:, :, layer], expected, atol=1e-5, rtol=1e-4)


def _states(model: Any, hidden: torch.Tensor, *, stable: bool) -> list[torch.Tensor]:
    """Hidden states by the published recipe: positions, (norm,) layers(, norm)."""
    hidden, _ = model.feature_projection(hidden)
    encoder = model.encoder
    x = hidden + encoder.pos_conv_embed(hidden)
    x = x if stable else encoder.layer_norm(x)
    states = [x]
    for layer in encoder.layers:
        x = layer(x)
        x = x if isinstance(x, torch.Tensor) else x[0]
        states.append(x)
    if stable:
        states[-1] = encoder.layer_norm(states[-1])
    return states


def test_choices_of_states_are_parts_of_all() -> None:
    clip = speech(6_400)
    every_state = whole_clip(Wav2Vec(network(), Wav2Vec2FrontEnd(states="all", left=5)), clip)
    layers = whole_clip(Wav2Vec(network(), Wav2Vec2FrontEnd(states="transformer", left=5)), clip)
    last = whole_clip(Wav2Vec(network(), Wav2Vec2FrontEnd(states="last", left=5)), clip)
    torch.testing.assert_close(layers, every_state[:, :, 1:])
    torch.testing.assert_close(last, every_state[:, :, -1])


def test_a_wider_window_comes_closer_to_the_whole_clip() -> None:
    clip, model = speech(64_000), network()
    whole = model(normalised(torch.nn.functional.pad(clip, (0, 80)))).last_hidden_state

    def error(left: int, right: int) -> float:
        config = Wav2Vec2FrontEnd(states="last", left=left, right=right)
        got = whole_clip(Wav2Vec(model, config), clip)
        return float((got - whole)[:, 100:150].square().mean().sqrt())

    assert error(100, 50) < error(25, 10) < error(5, 0)


def test_quiet_noise_is_not_blown_up_to_speech() -> None:
    quiet = 1e-4 * torch.randn(1, 4_000)
    assert normalised(quiet).std() < 0.1
    torch.testing.assert_close(
        normalised(speech(4_000)).std(), torch.tensor(1.0), atol=1e-3, rtol=0
    )
    assert torch.equal(normalised(torch.zeros(1, 400)), torch.zeros(1, 400))


def test_a_folder_with_another_head_loads_the_same_network(tmp_path: Path) -> None:
    config = Wav2Vec2FrontEnd(states="last", left=5)
    model = network()
    speller = Wav2Vec2ForCTC(model.config)
    speller.wav2vec2.load_state_dict(model.state_dict())
    clip = speech(6_400)
    for name, saved in (("alone", model), ("speller", speller)):
        saved.save_pretrained(tmp_path / name)
        front = load_wav2vec(tmp_path / name, config, CPU)
        torch.testing.assert_close(
            whole_clip(front, clip), whole_clip(Wav2Vec(model, config), clip)
        )


def test_what_is_not_such_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"no config\.json"):
        load_wav2vec(tmp_path, Wav2Vec2FrontEnd(), CPU)
    network().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layers.1.attention.q_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"1 missing .*layers\.1\.attention\.q_proj\.weight"):
        load_wav2vec(tmp_path, Wav2Vec2FrontEnd(), CPU)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadCheckpoint):
        load_wav2vec(tmp_path, Wav2Vec2FrontEnd(), CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadCheckpoint):
        load_wav2vec(tmp_path, Wav2Vec2FrontEnd(), CPU)
