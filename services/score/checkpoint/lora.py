"""Low-rank adapters (Hu et al., arXiv 2106.09685), merged into the weights while these are read.

Beside `layouts.py`. Names as PEFT writes them, with or without `base_model.model.` and an adapter's
name (`lora_A.default.weight`); also `lora_down` / `lora_up`. Merged weights cost nothing later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from services.runtime.weights import BadCheckpoint, Misshapen, Shape
from services.score.checkpoint.layouts import unwrapped
from services.score.checkpoint.tensors import Stored, Weights, read_file, read_json

_HOST = torch.device("cpu")
_NAME = re.compile(r"^(?:base_model\.)?(.+)\.lora_(A|B|down|up)(?:\.\w+)?\.weight$")


@dataclass(frozen=True, slots=True)
class Lora:
    """A file of low-rank adapters, or a PEFT folder.

    `alpha` divided by the rank scales what is added. Needed where neither the file nor an
    `adapter_config.json` beside it states it; wins where both do.
    """

    path: Path
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class _Pair:
    a: Stored  # [rank, columns]
    b: Stored  # [rows, rank]
    scale: float

    @property
    def shape(self) -> Shape:
        return (self.b.shape[0], self.a.shape[1])

    def added_to(self, stored: Stored) -> Stored:
        def read(device: torch.device) -> Tensor:
            change = self.b.read(device).float() @ self.a.read(device).float()
            return stored.read(device).float() + self.scale * change

        # float32 until it is cast for the device: rounding twice would lose small changes.
        return Stored(stored.shape, torch.float32, read)


def is_lora(weights: Weights) -> bool:
    return any(_NAME.match(name) for name in weights)


def merged(weights: Weights, lora: Lora) -> Weights:
    """`weights` with the changes of `lora`.

    Raises:
        BadCheckpoint: half a pair, an adapter for a tensor that is not there or has another
            shape, anything that is no adapter, or an unknown alpha.
    """
    file = _file(lora.path)
    source, found = str(file), unwrapped(read_file(file))
    pairs = dict(_pairs(source, found, _scale_of(lora, file, found)))
    foreign = sorted(f"{name}.weight" for name in pairs if f"{name}.weight" not in weights)
    misshapen = [
        Misshapen(f"{name}.weight", pair.shape, weights[f"{name}.weight"].shape)
        for name, pair in sorted(pairs.items())
        if f"{name}.weight" in weights and weights[f"{name}.weight"].shape != pair.shape
    ]
    if foreign or misshapen:
        raise BadCheckpoint(source, unexpected=foreign, misshapen=misshapen)
    changed = {f"{n}.weight": pair.added_to(weights[f"{n}.weight"]) for n, pair in pairs.items()}
    return {**weights, **changed}


def _file(path: Path) -> Path:
    return path / "adapter_model.safetensors" if path.is_dir() else path


@dataclass(frozen=True, slots=True)
class _Scale:
    alpha: float | None
    by_root: bool  # rank-stabilised: divided by the root of the rank

    def of(self, source: str, rank: int, own: Stored | None) -> float:
        alpha = float(own.read(_HOST)) if own and self.alpha is None else self.alpha
        if alpha is None:
            why = "it does not say its alpha; look in its authors' configuration and give it"
            raise BadCheckpoint(source, why=why)
        return alpha / (sqrt(rank) if self.by_root else rank)


def _scale_of(lora: Lora, file: Path, found: Weights) -> _Scale:
    beside = file.parent / "adapter_config.json"
    config = read_json(beside) if beside.is_file() else {}
    stated = any(name.endswith(".alpha") for name in found)
    alpha = None if stated else config.get("lora_alpha")
    chosen = lora.alpha if lora.alpha is not None else alpha
    return _Scale(chosen, by_root=bool(config.get("use_rslora")))


def _pairs(source: str, found: Weights, scale: _Scale) -> Iterator[tuple[str, _Pair]]:
    halves: dict[str, dict[str, Stored]] = {}
    alphas: dict[str, Stored] = {}
    strange = []
    for name, stored in found.items():
        if match := _NAME.match(name):
            module = match[1].removeprefix("model.")
            side = {"down": "A", "up": "B"}.get(match[2], match[2])
            halves.setdefault(module, {})[side] = stored
        elif name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = stored
        else:
            strange.append(name)
    half = [f"{module}.lora_{s}" for module, pair in halves.items() for s in "AB" if s not in pair]
    if strange or half:
        raise BadCheckpoint(source, missing=sorted(half), unexpected=sorted(strange))
    for module, pair in halves.items():
        a, b = pair["A"], pair["B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise BadCheckpoint(source, misshapen=[Misshapen(f"{module}.lora_B", b.shape, a.shape)])
        yield module, _Pair(a, b, scale.of(source, a.shape[0], alphas.get(module)))
