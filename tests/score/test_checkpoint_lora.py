"""Adapters are merged while weights are read: W + alpha / rank · B A."""

import json
from collections.abc import Callable
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


def test_patterns_give_modules_their_own_alpha_and_rank(
    tmp_path: Path, base: Path, weights: dict[str, Tensor]
) -> None:
    """As PEFT matches them: a whole name, or the end of one after a dot; the first wins."""
    pairs = changes(weights)
    ffn, query = "blocks.1.ffn.0", "blocks.0.self_attn.q"
    pairs[ffn] = tuple(half[:2] if n == 0 else half[:, :2] for n, half in enumerate(pairs[ffn]))  # type: ignore[assignment]
    file = tmp_path / "adapter_model.safetensors"
    write_lora(file, {name: (a.contiguous(), b.contiguous()) for name, (a, b) in pairs.items()})
    config = {
        "r": RANK,
        "lora_alpha": 8,
        "rank_pattern": {r"blocks\.1\.ffn\.0": 2},
        "alpha_pattern": {"self_attn.q": 12, "q": 1, r"^blocks\.1\.ffn\.0": 6},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    got = loaded(base, Lora(tmp_path))
    scales = {query: 12 / RANK, ffn: 6 / 2, "blocks.0.ffn.0": 8 / RANK}
    for module, scale in scales.items():
        a, b = pairs[module]
        wanted = weights[f"{module}.weight"] + scale * b @ a
        torch.testing.assert_close(got[f"{module}.weight"], wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": "8"}, "lora_alpha: expected a number, got '8'"),
        ({"lora_alpha": True}, "lora_alpha: expected a number"),
        ({"lora_alpha": [8]}, "lora_alpha: expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a number, got 'nan'"),
        ({"lora_alpha": 10**400}, "lora_alpha: expected a number"),
        ({"lora_alpha": 8, "r": 0}, "r: expected a rank above 0"),
        ({"lora_alpha": 8, "r": 3}, "has rank 4, and .* promises 3"),
        ({"lora_alpha": 8, "rank_pattern": {"self_attn.q": 9}}, "has rank 4, and .* promises 9"),
        ({"lora_alpha": 8, "rank_pattern": [1]}, "rank_pattern: expected an object"),
        ({"lora_alpha": 8, "alpha_pattern": {"q": None}}, "alpha_pattern q: expected a number"),
        ({"lora_alpha": 8, "alpha_pattern": {"(": 1}}, r"alpha_pattern: \( is no pattern"),
        ({"lora_alpha": 8, "use_dora": True}, "use_dora: expected False, got True"),
        ({"lora_alpha": 8, "fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_alpha": 8, "peft_type": "ADALORA"}, "peft_type: expected LORA, got ADALORA"),
        ({"lora_alpha": 8, "init_lora_weights": "pissa_niter_4"}, "changes the base"),
    ],
)
def test_configs_that_lie_or_ask_for_more_are_refused(
    tmp_path: Path,
    base: Path,
    weights: dict[str, Tensor],
    config: dict[str, object],
    message: str,
) -> None:
    write_lora(tmp_path / "adapter_model.safetensors", changes(weights))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(base, loras=[Lora(tmp_path)])


def edited(
    file: Path, weights: dict[str, Tensor], change: Callable[[dict[str, Tensor]], object]
) -> Lora:
    held = load_file(write_lora(file, changes(weights), prefix=""))
    change(held)
    save_file(held, file)
    return Lora(file, alpha=1)


Q = "blocks.0.self_attn.q"
WRONG_FILES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "of one rank above 0, got \\[0, 256\\] and \\[256, 0\\]": lambda held: held.update(
        {f"{Q}.lora_A.weight": torch.zeros(0, 256), f"{Q}.lora_B.weight": torch.zeros(256, 0)}
    ),
    "of one rank above 0, got \\[4, 256\\] and \\[256, 3\\]": lambda held: held.update(
        {f"{Q}.lora_B.weight": torch.zeros(256, 3)}
    ),
    "expected two matrices": lambda held: held.update(
        {f"{Q}.lora_B.weight": torch.zeros(256, 4, 1, 1)}
    ),
    r"several adapters \(one without a name, other\)": lambda held: held.update(
        {
            "blocks.9.x.lora_A.other.weight": torch.zeros(4, 256),
            "blocks.9.x.lora_B.other.weight": torch.zeros(256, 4),
        }
    ),
    "two lora_A of blocks.0.self_attn.q": lambda held: held.update(
        {f"{Q}.lora_down.weight": torch.zeros(4, 256)}
    ),
    "changed under two names": lambda held: held.update(
        {
            f"model.{Q}.lora_A.weight": torch.zeros(4, 256),
            f"model.{Q}.lora_B.weight": torch.zeros(256, 4),
        }
    ),
    r"1 missing \(blocks\.0\.self_attn\.q\.lora_B\)": lambda held: held.pop(f"{Q}.lora_B.weight"),
    r"1 missing \(blocks\.0\.self_attn\.q\.lora_A\)": lambda held: held.pop(f"{Q}.lora_A.weight"),
    "1 unexpected \\(blocks.9.x.alpha\\)": lambda held: held.update(
        {"blocks.9.x.alpha": torch.tensor(1.0)}
    ),
    "alpha: expected one number, got shape \\[2\\]": lambda held: held.update(
        {f"{Q}.alpha": torch.ones(2)}
    ),
    "alpha: expected a number, got 'nan'": lambda held: held.update(
        {f"{Q}.alpha": torch.tensor(torch.nan)}
    ),
    "no low-rank adapters": lambda held: held.clear(),
}


@pytest.mark.parametrize("message", WRONG_FILES)
def test_files_that_are_not_one_plain_adapter_are_refused(
    tmp_path: Path, base: Path, weights: dict[str, Tensor], message: str
) -> None:
    lora = edited(tmp_path / "a.safetensors", weights, WRONG_FILES[message])
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(base, loras=[lora])


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e300])
def test_an_alpha_given_that_is_no_number_is_refused(
    tmp_path: Path, base: Path, weights: dict[str, Tensor], alpha: float
) -> None:
    file = write_lora(tmp_path / "a.safetensors", changes(weights))
    with pytest.raises(BadCheckpoint, match="the alpha given: expected a number"):
        open_checkpoint(base, loras=[Lora(file, alpha=alpha)])


def test_a_peft_folder_of_pickles_and_a_folder_of_nothing(
    tmp_path: Path, base: Path, weights: dict[str, Tensor]
) -> None:
    pairs = changes(weights)
    file = write_lora(tmp_path / "a.safetensors", pairs)
    torch.save(load_file(file), tmp_path / "adapter_model.bin")
    expect(loaded(base, Lora(tmp_path, alpha=ALPHA)), weights, pairs, ALPHA / RANK)
    with pytest.raises(BadCheckpoint, match=r"neither adapter_model\.safetensors nor"):
        open_checkpoint(base, loras=[Lora(base, alpha=1)])


def test_adapters_trained_on_diffusers_names(
    tmp_path: Path, base: Path, weights: dict[str, Tensor]
) -> None:
    pairs = changes(weights)
    theirs = {"self_attn": "attn1", ".q": ".to_q", ".k": ".to_k", ".v": ".to_v"}
    theirs |= {"attn1.o": "attn1.to_out.0", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}

    def named(module: str) -> str:
        for ours, other in theirs.items():
            module = module.replace(ours, other)
        return module

    file = tmp_path / "a.safetensors"
    write_lora(file, {named(m): pair for m, pair in pairs.items()}, prefix="transformer.")
    expect(loaded(base, Lora(file, alpha=ALPHA)), weights, pairs, ALPHA / RANK)


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
