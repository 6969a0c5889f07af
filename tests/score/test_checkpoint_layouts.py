"""Every known layout opens to the same tensors under our names, and the right configuration."""

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.loading import load, save
from services.score.checkpoint.opening import Layout, open_checkpoint
from services.score.checkpoint.tensors import Stored
from services.score.config import (
    AnchorConfig,
    ClipConfig,
    ContextConfig,
    DitConfig,
    PositionsConfig,
    ScheduleConfig,
)
from services.score.rope import table
from tests.score.checkpoints import (
    CPU,
    FANTASYTALKING,
    I2V,
    MULTITALK,
    STEM,
    T2V,
    only_audio,
    tensors,
    write_fantasytalking_pickle,
    write_fantasytalking_safetensors,
    write_wan,
)
from tests.score.test_parity import Alone

both = pytest.mark.parametrize("config", [T2V, I2V], ids=["t2v", "i2v"])


def same(path: Path, expected: dict[str, Tensor], **opening: Any) -> DitConfig:
    """Opens and loads `path`, holds its tensors against `expected`, returns its configuration."""
    checkpoint = open_checkpoint(path, **opening)
    got = load(checkpoint, device=CPU, dtype=torch.float32).state_dict()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
    return checkpoint.config


@both
@pytest.mark.parametrize("shard_bytes", [1 << 40, 100_000], ids=["single", "sharded"])
def test_own_layout_round_trip(tmp_path: Path, config: DitConfig, shard_bytes: int) -> None:
    config = replace(config, schedule=ScheduleConfig(levels=(1.0, 0.7, 0.2), shift=2.0))
    weights = tensors(config)
    save(tmp_path, config, weights.items(), shard_bytes=shard_bytes)
    assert same(tmp_path, weights) == config
    sharded = (tmp_path / "model.safetensors.index.json").exists()
    assert sharded == (shard_bytes == 100_000)
    if sharded:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        files = {*index["weight_map"].values()}
        assert files == {file.name for file in tmp_path.glob("*.safetensors")}
        assert index["metadata"]["total_size"] == sum(w.nbytes for w in weights.values())


@both
@pytest.mark.parametrize("shards", [1, 3])
def test_wan_repository(tmp_path: Path, config: DitConfig, shards: int) -> None:
    weights = tensors(config)
    write_wan(tmp_path, config, weights, shards)
    assert same(tmp_path, weights) == config
    if shards == 1:
        assert same(tmp_path / f"{STEM}.safetensors", weights) == config


@both
def test_wan_weights_without_a_config(tmp_path: Path, config: DitConfig) -> None:
    weights = tensors(config)
    save_file(weights, tmp_path / "wan.safetensors")
    assert same(tmp_path / "wan.safetensors", weights) == config
    prefixed = {f"model.diffusion_model.{name}": w for name, w in weights.items()}
    save_file(prefixed, tmp_path / "prefixed.safetensors")
    assert same(tmp_path / "prefixed.safetensors", weights) == config


@pytest.mark.parametrize("wrapper", ["", "_fsdp_wrapped_module.", "module."])
@pytest.mark.parametrize("held", ["generator", "generator_ema"])
def test_self_forcing_student(tmp_path: Path, wrapper: str, held: str) -> None:
    weights = tensors(T2V)
    student = {f"{wrapper}model.{name}": w for name, w in weights.items()}
    torch.save({held: student, "step": 3}, tmp_path / "self_forcing_dmd.pt")
    config = same(tmp_path / "self_forcing_dmd.pt", weights)
    assert (config.dim, config.layers, config.heads, config.in_channels) == (256, 3, 2, 16)
    assert config.schedule == ScheduleConfig(levels=(1.0, 0.75, 0.5, 0.25), shift=5.0)
    assert config.context == ContextConfig(policy="window", chunks=6, replay=6)
    assert config.positions == PositionsConfig(anchor=0, context=0, own=18)


def test_wrappers_inside_names_and_the_average_wins(tmp_path: Path) -> None:
    average, raw = tensors(T2V, seed=1), tensors(T2V, seed=2)

    def wrapped(name: str) -> str:
        name = name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module._orig_mod.")
        return f"_fsdp_wrapped_module.model._fsdp_wrapped_module.{name}"

    pickle = {
        "generator": {f"model.{name}": w for name, w in raw.items()},
        "generator_ema": {wrapped(name): w for name, w in average.items()},
        "critic": {f"model.{name}": w for name, w in raw.items()},
    }
    torch.save(pickle, tmp_path / "model.pt")
    same(tmp_path / "model.pt", average)


def test_a_config_may_be_given(tmp_path: Path) -> None:
    torch.save({"generator": {f"model.{n}": w for n, w in tensors(T2V).items()}}, tmp_path / "a.pt")
    assert open_checkpoint(tmp_path / "a.pt").layout is Layout.STUDENT
    assert open_checkpoint(tmp_path / "a.pt", config=T2V).config == T2V


def diffusers_model(clip: ClipConfig | None) -> Any:
    torch.manual_seed(4)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=36 if clip else 16,
        out_channels=16,
        text_dim=20,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        image_dim=clip.dim if clip else None,
        added_kv_proj_dim=48 if clip else None,
    ).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.12)
    return model


@pytest.mark.parametrize("clip", [None, ClipConfig(dim=28)], ids=["t2v", "i2v"])
@pytest.mark.parametrize("shard", ["5GB", "100KB"], ids=["single", "sharded"])
def test_diffusers_own_file_predicts_what_diffusers_predicts(
    tmp_path: Path, clip: ClipConfig | None, shard: str
) -> None:
    theirs = diffusers_model(clip)
    theirs.save_pretrained(tmp_path / "transformer", max_shard_size=shard)
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.layout is Layout.DIFFUSERS
    assert checkpoint.config.heads == 2
    assert checkpoint.config.clip == clip
    assert checkpoint.config.anchor == (AnchorConfig() if clip else None)
    assert open_checkpoint(tmp_path / "transformer").config == checkpoint.config
    with pytest.raises(BadCheckpoint, match="names of diffusers; give the folder"):
        open_checkpoint(next((tmp_path / "transformer").glob("*.safetensors")))
    ours = load(checkpoint, device=CPU, dtype=torch.float32)

    x = torch.randn(1, 36 if clip else 16, 2, 8, 4)
    level, text = torch.tensor([0.6]), torch.randn(1, 512, 20)
    picture = torch.randn(1, 257, 28) if clip else None
    rope = table(24, frames=range(2), rows=range(4), columns=range(2))
    with torch.inference_mode():
        expected = theirs(x, 1000 * level, text, picture, return_dict=False)[0]
        got = ours(
            x,
            ours.embed_time(level),
            rope,
            given=ours.describe(text, picture),
            memory=[Alone()] * 2,
        )
    assert expected.abs().max() > 0.1
    assert (got - expected).abs().max() <= 1e-4


def test_multitalk_beside_and_among_the_shards(tmp_path: Path) -> None:
    config = replace(I2V, audio=MULTITALK, stream=replace(I2V.stream, fps=25))
    weights = tensors(config)
    audio = only_audio(weights)
    bare = {name: w for name, w in weights.items() if name not in audio}
    base = write_wan(tmp_path / "base", I2V, bare, shards=2)
    save_file(audio, tmp_path / "multitalk.safetensors")
    assert same(base, weights, audio=tmp_path / "multitalk.safetensors") == config
    # The authors' way: the file lies among the shards, and the index names it.
    save_file(audio, base / "multitalk.safetensors")
    index = base / f"{STEM}.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"].update(dict.fromkeys(audio, "multitalk.safetensors"))
    index.write_text(json.dumps(listed))
    assert same(base, weights) == config


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_fantasytalking_pickle, "fantasytalking_model.ckpt"),
        (write_fantasytalking_safetensors, "fantasytalking.safetensors"),
    ],
)
def test_fantasytalking(
    tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], Path], name: str
) -> None:
    stream = replace(I2V.stream, fps=24, sample_rate=24_000)
    config = replace(I2V, audio=FANTASYTALKING, stream=stream)
    weights = tensors(config)
    audio = only_audio(weights)
    base = write_wan(tmp_path, I2V, {n: w for n, w in weights.items() if n not in audio})
    assert same(base, weights, audio=write(tmp_path / name, audio)) == config


def test_weights_take_the_dtype_asked_for_and_levels_stay_exact(tmp_path: Path) -> None:
    config = replace(I2V, audio=FANTASYTALKING)
    save(tmp_path, config, tensors(config).items())
    model = load(open_checkpoint(tmp_path), device=CPU, dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        exact = name.startswith("time_") or name.endswith("modulation")
        assert tensor.dtype == (torch.float32 if exact else torch.bfloat16), name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert not model.training
    rope = table(128, frames=range(2), rows=range(2), columns=range(2))
    x = torch.randn(1, 36, 2, 4, 4).bfloat16()
    text, picture = torch.randn(1, 512, 24).bfloat16(), torch.randn(1, 257, 1280).bfloat16()
    known = [
        given._replace(audio=heard)
        for given, heard in zip(
            model.describe(text, picture),
            model.hear(torch.randn(1, 1, 25, 10).bfloat16(), torch.ones(1, 1, 25).bool()),
            strict=True,
        )
    ]
    faces = torch.ones(1, 1, 4).bfloat16()
    level = model.embed_time(torch.tensor([0.5]))
    out = model(x, level, rope, given=known, memory=[Alone()] * 2, faces=faces)
    assert torch.isfinite(out).all()


def test_loading_holds_one_tensor_beside_the_model(tmp_path: Path) -> None:
    save(tmp_path, T2V, tensors(T2V).items())
    checkpoint = open_checkpoint(tmp_path)
    alive: list[weakref.ref[Tensor]] = []

    def counted(stored: Stored) -> Stored:
        def read(device: torch.device) -> Tensor:
            assert not any(reference() is not None for reference in alive)
            tensor = stored.read(device)
            alive.append(weakref.ref(tensor))
            return tensor

        return replace(stored, read=read)

    watched = {name: counted(stored) for name, stored in checkpoint.weights.items()}
    load(replace(checkpoint, weights=watched), device=CPU, dtype=torch.bfloat16)
    assert len(alive) == len(watched)


def test_a_loaded_model_does_not_follow_its_file(tmp_path: Path) -> None:
    torch.save({"generator": {f"model.{n}": w for n, w in tensors(T2V).items()}}, tmp_path / "a.pt")
    model = load(open_checkpoint(tmp_path / "a.pt"), device=CPU, dtype=torch.float32)
    before = model.state_dict()["head.head.bias"].clone()
    with (tmp_path / "a.pt").open("r+b") as file:
        file.write(b"\0" * (tmp_path / "a.pt").stat().st_size)
    assert torch.equal(model.state_dict()["head.head.bias"], before)


def test_shards_are_written_one_at_a_time(tmp_path: Path) -> None:
    weights = {f"w{index}": torch.full((250,), float(index)) for index in range(10)}
    save(tmp_path, T2V, weights.items(), shard_bytes=2_000)
    sizes = [
        sum(w.nbytes for w in load_file(file).values()) for file in tmp_path.glob("*.safetensors")
    ]
    assert len(sizes) == 5
    assert max(sizes) <= 2_000
