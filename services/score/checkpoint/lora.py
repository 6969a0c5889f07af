"""Low-rank adapters (Hu et al., arXiv 2106.09685), merged into the weights while these are read.

Beside `layouts.py`. Names as PEFT writes them, with or without `base_model.model.` and an adapter's
name (`lora_A.default.weight`); also `lora_down` / `lora_up`. Merged weights cost nothing later.

An `adapter_config.json` beside the file is read as PEFT reads it (github.com/huggingface/peft,
`tuners/lora/config.py`), `alpha_pattern` and `rank_pattern` too; what it asks for beyond a plain
low-rank change is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from services.runtime.weights import BadCheckpoint, Misshapen, Shape
from services.score.checkpoint.layouts import bare_name, from_diffusers
from services.score.checkpoint.tensors import Stored, Weights, read_file, read_json

T = TypeVar("T")

_LARGEST = 1e6  # alphas are of the order of the rank
_HOST = torch.device("cpu")
_NAME = re.compile(r"^(.+)\.lora_(A|B|down|up)(?:\.(\w+))?\.weight$")
_ALPHA = re.compile(r"^(.+)\.alpha$")
_OUTER = re.compile(r"^(?:base_model\.model\.)?(?:transformer\.)?")  # PEFT's, and diffusers'
_FILES = ("adapter_model.safetensors", "adapter_model.bin")

# Of an adapter's config: what changes the result and is not a plain low-rank change.
_PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": (None, "LORA"),
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "fan_in_fan_out": (None, False),
    "megatron_config": (None,),
}
# These begin from other base weights than the ones at hand.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True, slots=True)
class Lora:
    """A file of low-rank adapters, or a PEFT folder.

    `alpha` divided by the rank scales what is added. Needed where neither the file nor an
    `adapter_config.json` beside it states it; wins where both do.
    """

    path: Path
    alpha: float | None = None
    usual_alpha: float | None = None  # where nobody states one


@dataclass(frozen=True, slots=True)
class Pair:
    """The change of one weight: scale · B A."""

    a: Stored  # [rank, columns]
    b: Stored  # [rows, rank]
    scale: float | None  # None where nobody states an alpha

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> Shape:
        return (self.b.shape[0], self.a.shape[1])

    def added_to(self, stored: Stored, scale: float) -> Stored:
        def read(device: torch.device) -> Tensor:
            change = self.b.read(device).float() @ self.a.read(device).float()
            return stored.read(device).float() + scale * change

        # float32 until it is cast for the device: rounding twice would lose small changes.
        return Stored(stored.shape, torch.float32, read)


def is_lora(weights: Weights) -> bool:
    return any(_NAME.match(name) for name in weights)


def lora_file(path: Path) -> Path | None:
    """The file of adapters that `path`, a file or a PEFT folder, stands for; None if it is none."""
    if not path.is_dir():
        return path
    return next((path / name for name in _FILES if (path / name).is_file()), None)


def merged(weights: Weights, lora: Lora) -> Weights:
    """`weights` with the changes of `lora`.

    Raises:
        BadCheckpoint: as `read_pairs`; or an adapter of a tensor that is not there or has another
            shape, or an unknown alpha.
    """
    source, pairs = read_pairs(lora)
    foreign = sorted(f"{name}.weight" for name in pairs if f"{name}.weight" not in weights)
    misshapen = [
        Misshapen(f"{name}.weight", pair.shape, weights[f"{name}.weight"].shape)
        for name, pair in sorted(pairs.items())
        if f"{name}.weight" in weights and weights[f"{name}.weight"].shape != pair.shape
    ]
    if foreign or misshapen:
        why = "it changes tensors that the transformer does not have, or has in another shape"
        raise BadCheckpoint(source, unexpected=foreign, misshapen=misshapen, why=why)
    changed = {}
    for name, pair in pairs.items():
        if pair.scale is None:
            why = "it does not say its alpha; look in its authors' configuration and give it"
            raise BadCheckpoint(source, why=why)
        changed[f"{name}.weight"] = pair.added_to(weights[f"{name}.weight"], pair.scale)
    return {**weights, **changed}


def read_pairs(lora: Lora) -> tuple[str, dict[str, Pair]]:
    """The file that was read, and its adapters by the name of the module they change.

    Raises:
        BadCheckpoint: unreadable, half a pair, several adapters in one file, a rank of 0 or another
            than promised, an alpha that is no number, or anything that is no plain adapter.
    """
    file = lora_file(lora.path)
    if file is None:
        raise BadCheckpoint(str(lora.path), why=f"neither {' nor '.join(_FILES)} is in it")
    beside = file.parent / "adapter_config.json"
    promises = _Promises.of(str(beside), read_json(beside)) if beside.is_file() else _Promises()
    alpha = None if lora.alpha is None else _number(str(file), "the alpha given", lora.alpha)
    found = read_file(file)
    scales = _Scales(str(file), alpha, _alphas(str(file), found), promises, lora.usual_alpha)
    pairs: dict[str, Pair] = {}
    for module, pair in _pairs(str(file), found, scales):
        if module in pairs:
            raise BadCheckpoint(str(file), why=f"{module} is changed under two names")
        pairs[module] = pair
    return str(file), pairs


@dataclass(frozen=True, slots=True)
class _Promises:
    """What an `adapter_config.json` says."""

    source: str = ""
    alpha: float | None = None
    rank: int | None = None
    by_root: bool = False  # rank-stabilised: divided by the root of the rank
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(source: str, config: dict[str, Any]) -> _Promises:
        for name, plain in _PLAIN.items():
            if config.get(name) not in plain:
                why = f"{name}: expected {plain[-1]}, got {str(config[name])[:80]}"
                raise BadCheckpoint(source, why=why)
        start = str(config.get("init_lora_weights")).lower()
        if start.startswith(_CHANGES_BASE):
            why = f"init_lora_weights: {start[:80]} changes the base, which is not at hand"
            raise BadCheckpoint(source, why=why)
        alpha, rank = config.get("lora_alpha"), config.get("r")
        alphas = _patterns(source, config, "alpha_pattern")
        ranks = _patterns(source, config, "rank_pattern")
        return _Promises(
            source,
            alpha=None if alpha is None else _number(source, "lora_alpha", alpha),
            rank=None if rank is None else _rank(source, "r", rank),
            by_root=bool(config.get("use_rslora")),
            alphas={key: _number(source, f"alpha_pattern {key}", v) for key, v in alphas.items()},
            ranks={key: _rank(source, f"rank_pattern {key}", v) for key, v in ranks.items()},
        )


@dataclass(frozen=True, slots=True)
class _Scales:
    """Who says by how much a change is scaled: the caller, else the file, else its config."""

    source: str
    given: float | None
    own: Mapping[str, float]  # by module, as the file names it
    promises: _Promises
    usual: float | None

    def of(self, module: str, rank: int) -> float | None:
        promised = _matching(self.promises.ranks, module, self.promises.rank)
        if promised is not None and promised != rank:
            why = f"{module} has rank {rank}, and {self.promises.source} promises {promised}"
            raise BadCheckpoint(self.source, why=why)
        alpha = self._alpha(module)
        if alpha is None:
            return None
        return alpha / (sqrt(rank) if self.promises.by_root else rank)

    def _alpha(self, module: str) -> float | None:
        if self.given is not None:
            return self.given
        if self.own:
            return self.own.get(module)
        promised = _matching(self.promises.alphas, module, self.promises.alpha)
        return self.usual if promised is None else promised


def _pairs(source: str, found: Weights, scales: _Scales) -> Iterator[tuple[str, Pair]]:
    for module, halves in _halves(source, found).items():
        a, b = halves["A"], halves["B"]
        if len(a.shape) != 2 or len(b.shape) != 2:
            why = f"{module}: expected two matrices, got {list(a.shape)} and {list(b.shape)}"
            raise BadCheckpoint(source, why=why)
        if 0 in (*a.shape, *b.shape) or a.shape[0] != b.shape[1]:
            why = (
                f"{module}: expected A [rank, columns] and B [rows, rank] of one rank above 0, "
                f"got {list(a.shape)} and {list(b.shape)}"
            )
            raise BadCheckpoint(source, why=why)
        yield _ours(module), Pair(a, b, scales.of(module, a.shape[0]))


def _halves(source: str, found: Weights) -> dict[str, dict[str, Stored]]:
    """Both halves of every adapter, by the module's name where it was trained."""
    halves: dict[str, dict[str, Stored]] = {}
    adapters, strange = set[str](), []
    for name, stored in found.items():
        if match := _NAME.match(name):
            module, side = (
                _OUTER.sub("", match[1]),
                {"down": "A", "up": "B"}.get(match[2], match[2]),
            )
            adapters.add(match[3] or "")
            if side in halves.setdefault(module, {}):
                raise BadCheckpoint(source, unexpected=[name], why=f"two lora_{side} of {module}")
            halves[module][side] = stored
        elif not _ALPHA.match(name):
            strange.append(name)
    if len(adapters) > 1:
        named = ", ".join(sorted(name or "one without a name" for name in adapters))
        raise BadCheckpoint(source, why=f"it holds several adapters ({named}); give one per file")
    told = {m[1]: name for name in found if (m := _ALPHA.match(name))}
    strange += [name for module, name in told.items() if _OUTER.sub("", module) not in halves]
    half = [f"{module}.lora_{s}" for module, pair in halves.items() for s in "AB" if s not in pair]
    if strange or half or not halves:
        why = "" if halves else "it holds no low-rank adapters"
        raise BadCheckpoint(source, missing=sorted(half), unexpected=sorted(strange), why=why)
    return halves


def _alphas(source: str, found: Weights) -> dict[str, float]:
    """What the file itself says, by module."""
    alphas = {}
    for name, stored in found.items():
        if match := _ALPHA.match(name):
            if torch.Size(stored.shape).numel() != 1:
                why = f"{name}: expected one number, got shape {list(stored.shape)}"
                raise BadCheckpoint(source, why=why)
            alphas[_OUTER.sub("", match[1])] = _number(source, name, stored.read(_HOST).item())
    return alphas


def _ours(module: str) -> str:
    return from_diffusers(f"{bare_name(module)}.weight").removesuffix(".weight")


def _patterns(source: str, config: dict[str, Any], name: str) -> dict[str, object]:
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        raise BadCheckpoint(source, why=f"{name}: expected an object, got {str(patterns)[:80]}")
    for key in patterns:
        try:
            re.compile(key)
        except re.error as error:
            raise BadCheckpoint(source, why=f"{name}: {key[:80]} is no pattern") from error
    return patterns


def _matching(patterns: Mapping[str, T], module: str, default: T | None) -> T | None:
    """PEFT's rule: the first pattern that is the module's name, or the end of it after a dot."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _number(source: str, name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return float(value)
    raise BadCheckpoint(source, why=f"{name}: expected a number, got {str(value)[:80]!r}")


def _rank(source: str, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadCheckpoint(source, why=f"{name}: expected a rank above 0, got {str(value)[:80]!r}")
    return value
