"""Wan2.2-S2V, RealVideo and LiveAvatar: the published forward, layouts and sizes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from services.runtime.weights import BadCheckpoint
from services.score.attention import KeysValues
from services.score.avatars import beyond_others
from services.score.cache import Handed
from services.score.checkpoint.loading import load
from services.score.checkpoint.lora import Lora
from services.score.checkpoint.opening import Layout, open_checkpoint
from services.score.checkpoint.recipes import Recipe
from services.score.config import DitConfig, LatentConfig, S2vAudio
from services.score.denoise import levels, sample
from services.score.hearing import Ear
from services.score.model import Dit, Times
from services.score.noise import noise
from services.score.passes import Passes, Places, Scene
from services.score.presets import preset
from services.score.rope import table, turn
from tests.score import calls, s2v, small
from tests.score.checkpoints import CPU
from tests.score.test_sizes import parameters, shapes, wan_keys

LEVEL = 0.75
recipes = pytest.mark.parametrize("recipe", ["realvideo", "liveavatar", "wan2.2-s2v"])


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return s2v.tensors()


def model(weights: dict[str, Tensor], config: DitConfig) -> Dit:
    dit = Dit(config).eval().requires_grad_(False)
    ours = {name: weights[s2v.published_name(name)] for name in dit.state_dict()}
    dit.load_state_dict(ours)
    return dit


@torch.no_grad()
@recipes
def test_a_chunk_is_drawn_as_published(weights: dict[str, Tensor], recipe: Recipe) -> None:
    """The reference first, alone; a finished chunk; then a chunk that sees both, and hears."""
    config, generator = s2v.config(recipe), torch.Generator().manual_seed(3)
    audio, frames = config.audio, config.stream.latents_per_chunk
    assert audio is not None
    picture = torch.randn(16, 1, 8, 8, generator=generator)
    clean, noisy = (torch.randn(16, frames, 8, 8, generator=generator) for _ in range(2))
    text = torch.randn(7, 24, generator=generator)
    heard = torch.randn(8 * frames, s2v.STATES, s2v.WIDTH, generator=generator)

    theirs = s2v.Published(weights, config)
    whole, tokens = theirs.audio(heard)
    if recipe == "liveavatar":  # it is given one chunk's speech at a time
        halves = (heard[: 4 * frames], heard[4 * frames :])
        parts = [theirs.audio(half) for half in halves]
        whole, tokens = (torch.cat([part[n] for part in parts]) for n in (0, 1))
    x, rope = theirs.reference(picture)
    _, anchor = theirs.run(x, rope, 0.0, text, [], None)
    side, where = range(4), config.positions

    def place(first: int) -> Tensor:
        return table(config.head_dim, frames=range(first, first + frames), rows=side, columns=side)

    seen = where.context + (config.context.chunks - 1) * frames
    first_half = (whole[:frames], tokens[:frames])
    second_half = (whole[frames:], tokens[frames:])
    _, past = theirs.run(theirs.drawn(clean), place(seen), 0.0, text, anchor, first_half)
    known = [
        tuple(torch.cat(pair) for pair in zip(a, b, strict=True))
        for a, b in zip(anchor, past, strict=True)
    ]
    x, _ = theirs.run(theirs.drawn(noisy), place(where.own), LEVEL, text, known, second_half)  # type: ignore[arg-type]
    expected = theirs.head(x, LEVEL, noisy.shape)

    dit = model(weights, config)
    passes = Passes(dit, Places(config, CPU))
    padded = torch.cat([text, text.new_zeros(512 - 7, 24)])[None]
    scene = Scene(picture[None], dit.describe(padded, None), torch.ones(1, 1, 16))
    embeddings = heard.flatten(1)
    before = embeddings[:1].expand(5, -1)  # as published: the first, over and over

    def hear(chunk: int) -> Tensor:
        padded = torch.cat([before, embeddings])
        return padded[4 * frames * chunk :][: 5 + 4 * frames][None, None]

    everybody = torch.ones(1, 1, 5 + 4 * frames, dtype=torch.bool)
    anchors = [Handed() for _ in range(config.layers)]
    passes.anchor(scene, dit.embed_time(torch.zeros(1)), anchors)
    chunks = [Handed(layer.own) for layer in anchors if layer.own is not None]
    said = dit.hear(hear(0), everybody)
    passes._run(clean[None], dit.embed_time(torch.zeros(1)), place(seen), scene, said, chunks)
    memory = [
        Handed(a.own, b.own)
        for a, b in zip(anchors, chunks, strict=True)
        if a.own is not None and b.own is not None
    ]
    said = dit.hear(hear(1), everybody)
    got = passes.denoise(noisy[None], scene, dit.embed_time(torch.tensor([LEVEL])), said, memory)
    torch.testing.assert_close(got[0], expected, atol=2e-4, rtol=2e-4)
    assert len(anchors[0].own.k[0]) == config.anchor_tokens  # type: ignore[union-attr]


def test_two_speakers_move_all_but_each_others_faces() -> None:
    faces = torch.tensor([[1.0, 0, 0, 0.5], [0, 1, 0, 1.0]])
    assert beyond_others(faces).tolist() == [[1, 0, 1, 0.5], [0, 1, 1, 1.0]]
    assert beyond_others(faces[:1]).tolist() == [[1, 1, 1, 1]]


def test_four_euler_steps_are_diffusers() -> None:
    config, generator = s2v.config("liveavatar"), torch.Generator().manual_seed(5)
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3)
    theirs.set_timesteps(4)
    sigmas = [float(sigma) for sigma in theirs.sigmas]
    assert list(levels(config.schedule)) == pytest.approx(sigmas[:-1], rel=1e-5)
    noise = torch.randn(4, 1, 16, 3, 8, 8, generator=generator)
    anchor = torch.zeros(1, 16, 1, 8, 8)

    def predict(x: Tensor, step: int) -> Tensor:
        return torch.sin(x * (step + 1))

    x = noise[0]
    for step, time in enumerate(theirs.timesteps):
        x = theirs.step(predict(x, step), time, x, return_dict=False)[0]
    got = sample(config, predict, list(noise), anchor)
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


def test_published_files_open(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    folder = s2v.write_wan22(tmp_path / "wan", weights)
    pickle = s2v.write_realvideo(tmp_path / "model.pt", weights)
    adapters, pairs = s2v.write_live_avatar(tmp_path / "liveavatar.safetensors")
    found = {
        "wan2.2-s2v": open_checkpoint(folder),
        "realvideo": open_checkpoint(pickle),
        "realvideo-4": open_checkpoint(pickle, recipe="realvideo-4"),
        "liveavatar": open_checkpoint(folder, loras=[Lora(adapters)]),
    }
    for name, opened in found.items():
        assert opened.recipe == name
        wide = opened.config.stream
        small = replace(wide, width=s2v.SIDE, height=s2v.SIDE)
        assert replace(opened.config, stream=small) == s2v.config(opened.recipe)
        got = load(opened, device=CPU, dtype=torch.float32).state_dict()
        assert {s2v.published_name(key) for key in got} == weights.keys()
        for key, tensor in got.items():
            expected = weights[s2v.published_name(key)]
            module = key.removesuffix(".weight")
            if name == "liveavatar" and module in pairs:
                a, b = pairs[module]
                expected = expected + 64 / 3 * b @ a
            torch.testing.assert_close(tensor, expected, msg=key)
    assert found["wan2.2-s2v"].layout is Layout.S2V
    assert found["realvideo"].layout is Layout.REALVIDEO
    assert open_checkpoint(pickle, size=(64, 96)).config.stream.height == 96


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enable_adain": False}, "enable_adain False; this reads True"),
        ({"enable_motioner": True}, "enable_motioner True; this reads False"),
        ({"audio_inject_layers": [0, 1]}, "audio_inject_layers"),
        ({"num_layers": 9}, "2 audio injectors in 9 layers: expected 3"),
    ],
)
def test_what_is_not_as_published_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], changes: dict[str, object], said: str
) -> None:
    folder = s2v.write_wan22(tmp_path, weights)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(BadCheckpoint, match=said):
        open_checkpoint(folder)


def test_wrong_files_are_refused_with_what_to_do(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    less = {name: w for name, w in weights.items() if not name.startswith("frame_packer.proj_2x")}
    with pytest.raises(BadCheckpoint) as refused:
        open_checkpoint(s2v.write_wan22(tmp_path / "less", less))
    assert refused.value.missing == ["frame_packer.proj_2x.bias", "frame_packer.proj_2x.weight"]
    folder = s2v.write_wan22(tmp_path / "shard", weights)
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"absent beside it: .*00002-of-00003"):
        open_checkpoint(folder)
    pickle = s2v.write_realvideo(tmp_path / "model.pt", weights)
    with pytest.raises(BadCheckpoint, match="recipe self-forcing is for another kind"):
        open_checkpoint(pickle, recipe="self-forcing")
    with pytest.raises(BadCheckpoint, match="multiples of 16"):
        open_checkpoint(pickle, size=(100, 100))


def s2v_keys() -> dict[str, tuple[int, ...]]:
    """What Wan2.2-S2V-14B adds to a text-to-video model of 14B, as published."""
    dim, keys = 5120, dict[str, tuple[int, ...]]()

    def both(name: str, *shape: int) -> None:
        keys[f"{name}.weight"], keys[f"{name}.bias"] = shape, shape[:1]

    keys["casual_audio_encoder.weights"] = (1, 25, 1, 1)
    encoder = "casual_audio_encoder.encoder"
    both(f"{encoder}.conv1_local.conv", 5120, 1024, 3)
    both(f"{encoder}.conv1_global.conv", 1280, 1024, 3)
    both(f"{encoder}.conv2.conv", 2560, 1280, 3)
    both(f"{encoder}.conv3.conv", 5120, 2560, 3)
    both(f"{encoder}.final_linear", dim, dim)
    keys[f"{encoder}.padding_tokens"] = (1, 1, 1, dim)
    for n in range(12):
        for part in "qkvo":
            both(f"audio_injector.injector.{n}.{part}", dim, dim)
        keys[f"audio_injector.injector.{n}.norm_q.weight"] = (dim,)
        keys[f"audio_injector.injector.{n}.norm_k.weight"] = (dim,)
        both(f"audio_injector.injector_adain_layers.{n}.linear", 2 * dim, dim)
    both("cond_encoder", dim, 16, 1, 2, 2)
    keys["trainable_cond_mask.weight"] = (3, dim)
    both("frame_packer.proj", dim, 16, 1, 2, 2)
    both("frame_packer.proj_2x", dim, 16, 2, 4, 4)
    both("frame_packer.proj_4x", dim, 16, 4, 8, 8)
    return keys


@pytest.mark.parametrize("name", ["wan2.2-s2v", "realvideo", "liveavatar"])
def test_names_and_shapes_at_full_size(name: str) -> None:
    config = preset(name)
    expected = wan_keys(5120, 13824, 40, 16, clip=False) | s2v_keys()
    assert {s2v.published_name(key): shape for key, shape in shapes(config).items()} == expected
    assert round(parameters(config) / 1e9, 2) == 16.30
    audio = ("casual_audio_encoder.", "audio_injector.")
    heard = sum(math.prod(shape) for key, shape in expected.items() if key.startswith(audio))
    assert round(heard / 1e9, 2) == 1.98


def small_ears(recipe: Recipe, replay: int) -> DitConfig:
    """The same way of drawing, over layers so narrow that a call takes moments."""
    config = s2v.config(recipe)
    assert config.audio is not None
    audio = replace(
        config.audio,
        adapter=S2vAudio(states=1, layers=(0, 1), past=config.audio.adapter.past),  # type: ignore[union-attr]
        front_end=small.SOUND,
        embedding_dim=small.SOUND.outputs,
    )
    return replace(
        config,
        dim=48,
        ffn_dim=64,
        heads=4,
        layers=2,
        text=None,
        latent=LatentConfig(channels=4),
        audio=audio,
        context=replace(config.context, replay=replay),
    )


@pytest.mark.parametrize("recipe", ["realvideo", "liveavatar"])
def test_a_session_that_moved_draws_nearly_what_it_would_have(recipe: Recipe) -> None:
    def error(replay: int) -> float:
        config = small_ears(recipe, replay)
        first, second = calls.engine(config), calls.engine(config)
        stays = calls.Call(config)
        stays.open(first)
        expected = stays.draw(first, 8)[7]
        moves = calls.Call(config, log=stays.log[:7])
        moves.open(second)
        return float((moves.draw(second)[0] - expected).std() / expected.std())

    one, many = error(1), error(6)
    assert one > 3 * many
    # In two layers nothing reaches back further than two chunks where clean ones are passed on.
    assert many < {"realvideo": 1e-6, "liveavatar": 1e-2}[recipe]


@torch.inference_mode()
def test_every_step_sees_what_the_last_chunk_left_at_its_level() -> None:
    """Two chunks of a call, step by step by hand."""
    config = small_ears("liveavatar", replay=1)
    config = replace(config, context=replace(config.context, chunks=1))
    call, engine = calls.Call(config), calls.engine(config)
    call.open(engine)
    got = call.draw(engine, 2)

    dit = small.model(config)
    passes, who = Passes(dit, Places(config, CPU)), calls.avatar(config)
    scene = Scene(who.anchor[None], dit.describe(None, None), torch.ones(1, 1, 16))
    anchors = [Handed() for _ in range(config.layers)]
    passes.anchor(scene, dit.embed_time(torch.zeros(1)), anchors)
    encoder, hearing = calls.ears(config), config.hearing
    assert encoder is not None
    assert hearing is not None
    ear = Ear(encoder, hearing, config.spec)
    left: list[list[KeysValues]] = []
    frames = config.stream.latents_per_chunk
    times = [dit.embed_time(torch.tensor([level])) for level in levels(config.schedule)]
    for chunk in range(2):
        embeddings, heard = ear.hear(chunk, call.speech(chunk)[0])
        said = dit.hear(embeddings[None, None], heard[None, None])
        steps = Steps(passes, scene, said, times, anchors, left)
        shape = (4, frames, *config.latent_size)
        noises = [noise(calls.SEED, chunk, step, shape)[None] for step in range(4)]
        expected, left = sample(config, steps, noises, scene.anchor), steps.left
        torch.testing.assert_close(got[chunk], expected[0], atol=1e-4, rtol=1e-4)


@dataclass
class Steps:
    """The steps of one chunk, each of which sees what the same step of the last one left."""

    passes: Passes
    scene: Scene
    said: list[KeysValues]
    times: list[Times]
    anchors: list[Handed]
    before: list[list[KeysValues]]
    left: list[list[KeysValues]] = field(default_factory=list)

    def __call__(self, x: Tensor, step: int) -> Tensor:
        move = self.passes.places.moves[0]
        assert move is not None
        past = self.before[step] if self.before else []
        turned = [KeysValues(turn(own.k, move), own.v) for own in past]
        memory = [
            Handed(*([layer.own] if layer.own else []), *turned[n : n + 1])
            for n, layer in enumerate(self.anchors)
        ]
        out = self.passes.denoise(x, self.scene, self.times[step], self.said, memory)
        self.left.append([layer.own for layer in memory if layer.own is not None])
        return out
