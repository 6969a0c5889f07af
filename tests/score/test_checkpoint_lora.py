"""Adapters are merged while weights are read: W + alpha / rank · B A."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.loading import load
from services.score.checkpoint.lora import Lora
from services.score.checkpoint.opening import open_checkpoint
from tests.score.checkpoints import CPU, T2V, tensors, write_lora, write_wan

RANK, ALPHA = 4, 2.0
# The modules that LiveAvatar adapts.
MODULES = [
    f"blocks.{block}.{part}"
    for block in range(T2V.layers)
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "ffn.0", "ffn.2")
]


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return tensors(T2V)


@pytest.fixture
def base(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    return write_wan(tmp_path / "base", T2V, weights)


def changes(weights: dict[str, Tensor], seed: int = 5) -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    return {
        module: (
            torch.randn(RANK, weights[f"{module}.weight"].shape[1]),
            torch.randn(weights[f"{module}.weight"].shape[0], RANK),
        )
        for module in MODULES
    }


def loaded(base: Path, *loras: Lora) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(base, loras=loras)
    return load(checkpoint, device=CPU, dtype=torch.float32).state_dict()


def expect(
    got: dict[str, Tensor],
    weights: dict[str, Tensor],
    pairs: dict[str, tuple[Tensor, Tensor]],
    scale: float,
) -> None:
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        wanted = weight
        if name.endswith(".weight") and module in pairs:
            a, b = pairs[module]
            wanted = weight + scale * torch.einsum("or,ri->oi", b, a)
        torch.testing.assert_close(got[name], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["base_model.model.", "", "diffusion_model.", "model."])
@pytest.mark.parametrize(
    "halves",
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_down.weight", "lora_up.weight"),
    ],
    ids=["peft", "named", "down-up"],
)
def test_every_way_of_naming(
    tmp_path: Path,
    base: Path,
    weights: dict[str, Tensor],
    prefix: str,
    halves: tuple[str, str],
) -> None:
    pairs = changes(weights)
    file = write_lora(tmp_path / "live.safetensors", pairs, prefix=prefix, halves=halves)
    expect(loaded(base, Lora(file, alpha=ALPHA)), weights, pairs, ALPHA / RANK)


@pytest.mark.parametrize(("by_root", "scale"), [(False, 8 / RANK), (True, 8 / RANK**0.5)])
def test_a_peft_folder_says_its_own_alpha(
    tmp_path: Path, base: Path, weights: dict[str, Tensor], by_root: bool, scale: float
) -> None:
    pairs = changes(weights)
    write_lora(tmp_path / "adapter_model.safetensors", pairs)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "use_rslora": by_root}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    expect(loaded(base, Lora(tmp_path)), weights, pairs, scale)
    expect(
        loaded(base, Lora(tmp_path, alpha=16)), weights, pairs, 2 * scale
    )  # what the caller says wins


def test_alphas_in_the_file(tmp_path: Path, base: Path, weights: dict[str, Tensor]) -> None:
    pairs = changes(weights)
    file = write_lora(tmp_path / "a.safetensors", pairs, prefix="diffusion_model.")
    held = load_file(file)
    held |= {f"diffusion_model.{module}.alpha": torch.tensor(1.0) for module in pairs}
    save_file(held, file)
    expect(loaded(base, Lora(file)), weights, pairs, 1 / RANK)


def test_several_add_up(tmp_path: Path, base: Path, weights: dict[str, Tensor]) -> None:
    one, two = changes(weights, 1), changes(weights, 2)
    first = Lora(write_lora(tmp_path / "1.safetensors", one), alpha=4)
    second = Lora(write_lora(tmp_path / "2.safetensors", two), alpha=8)
    got = loaded(base, first, second)
    module = MODULES[0]
    wanted = weights[f"{module}.weight"] + one[module][1] @ one[module][0]
    wanted = wanted + 2 * two[module][1] @ two[module][0]
    torch.testing.assert_close(got[f"{module}.weight"], wanted, atol=1e-4, rtol=1e-5)


def test_small_changes_survive_sixteen_bits(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    base = write_wan(tmp_path / "b", T2V, {n: w.bfloat16() for n, w in weights.items()})
    pairs = {MODULES[0]: tuple(1e-3 * half for half in changes(weights)[MODULES[0]])}
    file = write_lora(tmp_path / "a.safetensors", pairs)  # type: ignore[arg-type]
    got = loaded(base, Lora(file, alpha=RANK))[f"{MODULES[0]}.weight"]
    a, b = pairs[MODULES[0]]
    exact = weights[f"{MODULES[0]}.weight"].bfloat16().float() + b @ a
    torch.testing.assert_close(got, exact, atol=1e-9, rtol=1e-6)


def test_an_unknown_alpha_is_refused(
    tmp_path: Path, base: Path, weights: dict[str, Tensor]
) -> None:
    file = write_lora(tmp_path / "a.safetensors", changes(weights))
    with pytest.raises(BadCheckpoint, match="does not say its alpha"):
        open_checkpoint(base, loras=[Lora(file)])


def test_what_does_not_fit_is_named(tmp_path: Path, base: Path, weights: dict[str, Tensor]) -> None:
    pairs = changes(weights)
    foreign = {**pairs, "blocks.9.self_attn.q": (torch.zeros(4, 9), torch.zeros(9, 4))}
    file = write_lora(tmp_path / "1.safetensors", foreign)
    with pytest.raises(BadCheckpoint, match=r"1 unexpected \(blocks\.9\.self_attn\.q\.weight\)"):
        open_checkpoint(base, loras=[Lora(file, alpha=1)])
    a, b = pairs[MODULES[0]]
    file = write_lora(tmp_path / "2.safetensors", {MODULES[0]: (a[:, :7].clone(), b)})
    with pytest.raises(BadCheckpoint, match=r"got \[256, 7\], expected \[256, 256\]"):
        open_checkpoint(base, loras=[Lora(file, alpha=1)])
    file = write_lora(tmp_path / "3.safetensors", pairs)
    held = load_file(file)
    del held[f"base_model.model.{MODULES[3]}.lora_B.weight"]
    held["base_model.model.head.head.diff_b"] = torch.zeros(3)
    save_file(held, file)
    with pytest.raises(BadCheckpoint) as caught:
        open_checkpoint(base, loras=[Lora(file, alpha=1)])
    assert caught.value.missing == [f"{MODULES[3]}.lora_B"]
    assert caught.value.unexpected == ["base_model.model.head.head.diff_b"]
