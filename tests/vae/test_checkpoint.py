"""Every public layout loads unchanged, and what does not fit is refused with its list."""

from __future__ import annotations

import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.runtime.weights import BadCheckpoint
from services.vae.checkpoint import build, load, save
from services.vae.config import VaeConfig, tiny, wan21
from services.vae.diffusers_layout import name_pairs
from services.vae.model import Vae
from services.vae.state import State
from tests.vae.conftest import MEAN, STD, folded, random_vae


def test_our_own_layout_comes_back_as_it_was(vae: Vae, tmp_path: Path) -> None:
    save(vae, tmp_path / "vae")
    again = load(tmp_path / "vae")
    assert again.config == vae.config
    z = torch.randn(1, 4, 2, 4, 4)
    assert again.decode(z, State())[0].equal(vae.decode(z, State())[0])


@pytest.mark.parametrize("config", [wan21(), tiny(), folded()], ids=["wan21", "tiny", "folded"])
def test_configs_come_back_from_disk_as_they_were(config: VaeConfig, tmp_path: Path) -> None:
    config.write(tmp_path)
    assert VaeConfig.read(tmp_path) == config


def test_the_original_file_loads_by_its_names_and_shapes(tmp_path: Path) -> None:
    """At full size: every tensor a view of one number, so that the file stays small."""
    path = tmp_path / "Wan2.1_VAE.pth"
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in wan_shapes().items()}, path)
    vae = load(path)
    assert vae.config == wan21()
    parameters = sum(parameter.numel() for parameter in vae.decoder.parameters())
    assert round(parameters / 1e6, 1) == 73.3


def wan_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Vae(wan21()).state_dict().items()}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1.weight", (32, 32, 1, 1, 1)),
        ("conv2.bias", (16,)),
        ("encoder.conv1.weight", (96, 3, 3, 3, 3)),
        ("encoder.downsamples.2.resample.1.weight", (96, 96, 3, 3)),
        ("encoder.downsamples.3.shortcut.weight", (192, 96, 1, 1, 1)),
        ("encoder.downsamples.5.time_conv.weight", (192, 192, 3, 1, 1)),
        ("encoder.middle.1.to_qkv.weight", (1152, 384, 1, 1)),
        ("encoder.head.2.weight", (32, 384, 3, 3, 3)),
        ("decoder.middle.0.residual.0.gamma", (384, 1, 1, 1)),
        ("decoder.middle.1.norm.gamma", (384, 1, 1)),
        ("decoder.upsamples.3.time_conv.weight", (768, 384, 3, 1, 1)),
        ("decoder.upsamples.3.resample.1.weight", (192, 384, 3, 3)),
        ("decoder.upsamples.4.residual.2.weight", (384, 192, 3, 3, 3)),
        ("decoder.upsamples.11.resample.1.weight", (96, 192, 3, 3)),
        ("decoder.upsamples.14.residual.6.bias", (96,)),
        ("decoder.head.0.gamma", (96, 1, 1, 1)),
        ("decoder.head.2.weight", (3, 96, 3, 3, 3)),
    ],
)
def test_original_names(name: str, shape: tuple[int, ...]) -> None:
    """Facts of the public file, from its repository."""
    assert wan_shapes()[name] == shape


def test_full_size_names_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        theirs = AutoencoderKLWan().state_dict()
    shapes = wan_shapes()
    assert {theirs_: shapes[ours] for theirs_, ours in name_pairs(wan21())} == {
        name: tuple(tensor.shape) for name, tensor in theirs.items()
    }


def small_diffusers() -> Any:
    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True],
        latents_mean=list(MEAN), latents_std=list(STD),
    )  # fmt: skip


def test_a_diffusers_directory_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = small_diffusers()
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.config.frames_per_latent == 4
    z = torch.randn(1, 4, 3, 4, 4)
    expected = theirs.eval().decode(z * ours.std + ours.mean).sample.detach()
    frames, _ = ours.decode(z, State())
    torch.testing.assert_close(frames.clamp(-1, 1), expected, atol=1e-4, rtol=0)


def tensors(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def test_misfits_are_named(vae: Vae, tmp_path: Path) -> None:
    save(vae, tmp_path)
    file = tensors(tmp_path)
    file["decoder.spare.weight"] = file.pop("decoder.conv1.weight")
    file["conv2.bias"] = torch.zeros(7)
    save_file(file, tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint) as caught:
        load(tmp_path)
    assert caught.value.missing == ["decoder.conv1.weight"]
    assert caught.value.unexpected == ["decoder.spare.weight"]
    assert [item.name for item in caught.value.misshapen] == ["conv2.bias"]


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"blocks.0.weight": torch.zeros(2)}, path)
    with pytest.raises(BadCheckpoint, match=r"missing .* unexpected \(blocks\.0\.weight\)"):
        load(path)


@pytest.mark.parametrize(
    "junk",
    [
        {"state_dict": {"a": torch.zeros(1)}},
        {1: torch.zeros(1)},
        {"conv1.weight": [1.0]},
        [torch.zeros(1)],
        torch.zeros(1),
        None,
    ],
    ids=["nested", "integer-names", "no-tensor", "list", "tensor", "none"],
)
def test_files_that_hold_something_else_are_refused(junk: object, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(junk, path)
    with pytest.raises(BadCheckpoint, match="flat mapping"):
        load(path)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    """Whatever bytes they hold: what the reader raises then has no list."""
    path = tmp_path / "broken.pth"
    torch.save({"conv2.bias": torch.zeros(16)}, path)
    whole, chance = path.read_bytes(), random.Random(0)
    opcodes = pickle.PROTO + b"\x02" + b"".join(bytes([chance.randrange(256)]) for _ in range(40))
    broken = [b"", b"not a checkpoint", pickle.dumps({"a": 1})[:-1], b"\x80\x02.", b"(.", opcodes]
    broken += [whole[: chance.randrange(len(whole))] for _ in range(20)]
    for _ in range(100):
        bent = bytearray(whole)
        for _ in range(4):
            bent[chance.randrange(len(bent))] = chance.randrange(256)
        broken.append(bytes(bent))
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(BadCheckpoint, match=r"broken\.pth"):
            load(path)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(4, dtype=torch.int64),
        torch.full((4,), math.nan),
        torch.zeros(4, dtype=torch.complex64),
        torch.zeros(4).to_sparse(),
        torch.zeros(4, device="meta"),
    ],
    ids=["integers", "nan", "complex", "sparse", "meta"],
)
def test_tensors_that_are_no_weights_are_named(wrong: Tensor) -> None:
    vae = random_vae(folded())
    with pytest.raises(BadCheckpoint, match=r"finite floating-point numbers in conv2\.bias"):
        build(vae.config, {**vae.state_dict(), "conv2.bias": wrong}, "a file")


HUGE = 2**63

LIES: list[tuple[str, object]] = [
    ("patch", 0),
    ("patch", HUGE),
    ("latent_std", [1.0]),
    ("latent_std", [math.nan] * 16),
    ("latent_std", [1e-30] * 16),
    ("latent_mean", [math.inf] * 16),
    ("latent_mean", [-(10**400)] * 16),
    ("latent_mean", [0.0] * 5000),
    ("norm_groups", 5),
    ("norm_groups", -1),
    ("norm_groups", HUGE),
    ("decoder.temporal", [False, True]),
    ("encoder.taps", [2, 3, 3]),
    ("encoder.taps", [3, 3]),
    ("decoder.middle_taps", 0),
    ("encoder.widths", []),
    ("encoder.widths", [32, 64, HUGE]),
    ("decoder.widths", [128, 0, 64]),
    ("decoder.widths", [8] * 100_000),
    ("encoder.blocks", HUGE),
    ("decoder.blocks", -1),
    ("decoder.blocks", True),
    ("extra", 1),
]


def lie(directory: Path, path: str, value: object) -> None:
    """Write a config whose field `path` is `value`."""
    file = directory / "config.json"
    tree = json.loads(file.read_text())
    *parents, name = path.split(".")
    group = tree[parents[0]] if parents else tree
    group[name] = value
    file.write_text(json.dumps(tree))


@pytest.mark.timeout(10)  # a lie is refused before anything is built
@pytest.mark.parametrize(("path", "value"), LIES, ids=[f"{n}-{p}" for n, (p, _) in enumerate(LIES)])
def test_contradictory_configs_are_refused(path: str, value: object, tmp_path: Path) -> None:
    tiny().write(tmp_path)
    lie(tmp_path, path, value)
    with pytest.raises(BadCheckpoint, match=path.replace(".", r"\.")):
        load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("base_dim", [0]),
        ("base_dim", HUGE),
        ("dim_mult", "1234"),
        ("dim_mult", [1, 2, 1.5]),
        ("num_res_blocks", 1.5),
        ("num_res_blocks", HUGE),
        ("temperal_downsample", [1, 0]),
        ("latents_mean", None),
        ("latents_std", [math.nan] * 4),
        ("patch_size", "two"),
    ],
)
def test_contradictory_diffusers_configs_are_refused(
    path: str, value: object, tmp_path: Path
) -> None:
    small_diffusers().save_pretrained(tmp_path)
    lie(tmp_path, path, value)
    ours = {
        "base_dim": "base_dim|widths",
        "num_res_blocks": "num_res_blocks|blocks",
        "latents_std": "latent_std",
    }
    with pytest.raises(BadCheckpoint, match=ours.get(path, path)):
        load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"patch": 2}', "[" * 100_000, '{"patch": ' + "9" * 5000 + "}"],
    ids=["empty", "list", "missing", "nested", "digits"],
)
def test_unreadable_configs_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        load(tmp_path)
