"""Tensors in files: their names, shapes and dtypes at once, their values one at a time.

Bottom of the checkpoint package; knows files, not models. A 65 GB checkpoint is opened in
milliseconds and never lies in host memory as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from services.runtime import strict_json
from services.runtime.weights import BadCheckpoint, Shape

PICKLES = (".pt", ".pth", ".ckpt", ".bin")
SCALE = ".scale"  # ends the name of what multiplies a tensor's rows

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is still in its file.

    `read` gives it on a device; on the host it may still be mapped to the file.
    """

    shape: Shape
    dtype: torch.dtype
    read: Callable[[torch.device], Tensor]


Weights = Mapping[str, Stored]


def shapes(weights: Weights) -> dict[str, Shape]:
    return {name: stored.shape for name, stored in weights.items()}


def count(weights: Weights) -> int:
    """Parameters."""
    return sum(_size(stored.shape) for stored in weights.values())


def size(weights: Weights) -> int:
    """Bytes."""
    return sum(_size(stored.shape) * stored.dtype.itemsize for stored in weights.values())


def read_file(path: Path) -> Weights:
    """The tensors of one file: safetensors, or a pickle of (nested) dicts of tensors.

    Names inside nested dicts are joined by dots.

    Raises:
        BadCheckpoint: the file cannot be read, or a pickle holds anything that is not data.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return _read_pickle(path)
    raise BadCheckpoint(str(path), why=f"expected .safetensors or one of {', '.join(PICKLES)}")


def read_folder(folder: Path, stem: str) -> Weights | None:
    """The tensors of `stem.safetensors`, or of the shards that its index names; None if neither.

    Raises:
        BadCheckpoint: a shard is absent or unreadable, or lacks what the index says it has.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return _read_shards(index)
    single = folder / f"{stem}.safetensors"
    return _read_safetensors(single) if single.is_file() else None


def scaled(source: str, weights: Weights) -> Weights:
    """`weights` with every scale that is among them applied to its tensor, while that is read.

    Raises:
        BadCheckpoint: a scale of nothing, or of another shape than its tensor's rows.
    """
    found = dict(weights)
    for name in [name for name in weights if name.endswith(SCALE)]:
        owner, scale = name.removesuffix(SCALE), found.pop(name)
        if owner not in found or scale.shape != (*found[owner].shape[:1], 1):
            raise BadCheckpoint(source, unexpected=[name], why="a scale that fits no tensor")
        found[owner] = _multiplied(found[owner], scale)
    return found


def _multiplied(stored: Stored, scale: Stored) -> Stored:
    def read(device: torch.device) -> Tensor:
        return stored.read(device).float() * scale.read(device).float()

    return Stored(stored.shape, torch.float32, read)


def read_json(path: Path) -> dict[str, Any]:
    """Raises BadCheckpoint when the file is not a JSON object."""
    try:
        value = strict_json.parse(path)
    except (OSError, ValueError) as error:
        raise BadCheckpoint(str(path), why=f"not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadCheckpoint(str(path), why="expected a JSON object")
    return value


def write_folder(
    folder: Path, stem: str, tensors: Iterable[tuple[str, Tensor]], *, shard_bytes: int
) -> None:
    """Write `stem.safetensors`, or shards of at most `shard_bytes` and their index.

    `tensors` is consumed as it comes; one shard is held at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    names: list[list[str]] = []
    total = 0
    for shard in _shards(tensors, shard_bytes):
        files.append(folder / f"{stem}-{len(files) + 1:05d}.safetensors")
        names.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
        save_file(shard, files[-1], {"format": "pt"})
    if len(files) == 1:
        files[0].replace(folder / f"{stem}.safetensors")
        return
    where = {}
    for number, (file, held) in enumerate(zip(files, names, strict=True), 1):
        final = f"{stem}-{number:05d}-of-{len(files):05d}.safetensors"
        file.replace(folder / final)
        where.update(dict.fromkeys(held, final))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors:
        if shard and held + tensor.nbytes > shard_bytes:
            yield shard
            shard, held = {}, 0
        # Contiguous and its own storage: safetensors refuses views that share memory.
        shard[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        held += tensor.nbytes
    yield shard


def _read_shards(index: Path) -> Weights:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict):
        raise BadCheckpoint(str(index), why="expected a weight_map")
    for file in where.values():
        if not isinstance(file, str):
            raise BadCheckpoint(str(index), why=f"expected names of files, got {str(file)[:80]}")
    beside = {path.name for path in index.parent.iterdir() if path.is_file()}
    absent = sorted({*where.values()} - beside)
    if absent:
        raise BadCheckpoint(str(index), why=f"absent beside it: {', '.join(absent)[:400]}")
    files = {file: _read_safetensors(index.parent / file) for file in sorted({*where.values()})}
    missing = sorted(name for name, file in where.items() if name not in files[file])
    if missing:
        raise BadCheckpoint(str(index), missing=missing, why="shards lack what the index names")
    return {name: files[file][name] for name, file in where.items()}


def _read_safetensors(path: Path) -> Weights:
    try:
        # Stays open as long as one of its tensors may still be read.
        file: Any = safe_open(path, framework="pt", device="cpu")
        return {name: _in_safetensors(path, file, name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(str(path), why=f"not a readable safetensors file: {error}") from error


def _in_safetensors(path: Path, file: Any, name: str) -> Stored:
    header = file.get_slice(name)
    kind = header.get_dtype()
    if kind not in _DTYPES:
        raise BadCheckpoint(str(path), why=f"{name} has the unknown dtype {kind}")
    return Stored(tuple(header.get_shape()), _DTYPES[kind], partial(_read, file, name))


def _read(file: Any, name: str, device: torch.device) -> Tensor:
    tensor: Tensor = file.get_tensor(name)
    return tensor.to(device)


def _read_pickle(path: Path) -> Weights:
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_stay_on_disk(path))
    except Exception as error:
        # A damaged file fails wherever the reader happens to be, with whatever it meets there; and
        # what PyTorch says of it advises to run the file's code.
        why = f"not a readable file of tensors and plain data ({type(error).__name__})"
        raise BadCheckpoint(str(path), why=why) from error
    if not isinstance(tree, Mapping):
        raise BadCheckpoint(str(path), why=f"expected a dict of tensors, got {type(tree).__name__}")
    return dict(_flattened(tree, str(path), seen=set()))


def _can_stay_on_disk(path: Path) -> bool:
    """Whether tensors lie in the file as they are: the zip form, without compression.

    Mapped anyway, a compressed tensor is read as if its compressed bytes were numbers.
    """
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return all(member.compress_type == ZIP_STORED for member in archive.infolist())


def _flattened(
    tree: Mapping[Any, Any], source: str, *, seen: set[int], above: str = ""
) -> Iterator[tuple[str, Stored]]:
    if id(tree) in seen:  # dicts that hold each other would unfold for ever
        raise BadCheckpoint(source, why="a dict of tensors that occurs more than once")
    seen.add(id(tree))
    for name, value in tree.items():
        path = f"{above}{name}"
        if isinstance(value, Tensor):
            yield path, _held(value)
        elif isinstance(value, Mapping):
            yield from _flattened(value, source, seen=seen, above=f"{path}.")


def _held(tensor: Tensor) -> Stored:
    return Stored(tuple(tensor.shape), tensor.dtype, tensor.to)


def _size(shape: Shape) -> int:
    return torch.Size(shape).numel()
