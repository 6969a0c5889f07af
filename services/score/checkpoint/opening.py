"""Open a checkpoint of any known layout: what it is, its configuration, its tensors by our names.

Above the files and layouts, below loading and inspecting. Reads headers alone; what does not fit is
refused here, before a byte of weights is read.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from services.runtime.weights import BadCheckpoint, Shape, fit
from services.score.checkpoint.audio import audio_weights
from services.score.checkpoint.layouts import (
    from_diffusers,
    is_s2v,
    s2v_config,
    sizes_from_diffusers,
    sizes_from_shapes,
    sizes_from_wan,
    unwrapped,
    wan_config,
)
from services.score.checkpoint.lora import Lora, merged
from services.score.checkpoint.recipes import Recipe, prepared, sized
from services.score.checkpoint.tensors import (
    PICKLES,
    Stored,
    Weights,
    read_file,
    read_folder,
    read_json,
    scaled,
    shapes,
)
from services.score.config import DitConfig
from services.score.model import Dit

# LiveAvatar's file of adapters does not say it; its `configs/s2v_causal_sft.yaml` does.
_LIVE_AVATAR_ALPHA = 64.0
# Inside a pickle of training: the average of the student's weights, else the student's weights.
_STUDENTS = ("generator_ema.", "generator.")


class Layout(enum.Enum):
    """Whose way of storing a transformer it is; the value is for people."""

    OWN = "talkingmachines folder"
    WAN = "Wan2.1 layout"
    DIFFUSERS = "diffusers layout"
    STUDENT = "Self-Forcing / CausVid pickle"
    S2V = "Wan2.2-S2V layout"
    REALVIDEO = "RealVideo pickle"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that fits its configuration, opened but not read."""

    path: Path
    layout: Layout
    config: DitConfig
    weights: Weights  # by the names of `Dit`
    recipe: Recipe | None = None  # that schedule and visibility were taken from


@dataclass(frozen=True, slots=True)
class _Base:
    layout: Layout
    config: DitConfig
    weights: Weights


def open_checkpoint(
    path: Path,
    *,
    audio: Path | None = None,
    loras: Sequence[Lora] = (),
    recipe: Recipe | None = None,
    size: tuple[int, int] | None = None,
    config: DitConfig | None = None,
) -> Checkpoint:
    """Open the transformer at `path`, a folder or a file.

    Args:
        path: our own folder; a Wan2.1 or Wan2.2-S2V repository or its weights file; a `.pt` of
            Self-Forcing, CausVid or RealVideo; a diffusers pipeline or its transformer.
        audio: audio weights published apart (MultiTalk, InfiniteTalk, FantasyTalking).
        loras: merged in this order.
        recipe: how a public student was distilled; not given: the usual one of its layout, which
            for adapters over Wan2.2-S2V is LiveAvatar's.
        size: width and height of the picture, for layouts that do not say.
        config: instead of what the checkpoint says or implies. Public layouts do not say how
            their weights were distilled: schedule, visibility and geometry are ours by default.

    Raises:
        BadCheckpoint: unreadable, of no known layout, or with missing, unexpected or misshapen
            tensors, all of which are named.
    """
    base = _open_base(path)
    weights, chosen = base.weights, base.config
    recipe = recipe or _usual(base.layout, loras)
    chosen = chosen if recipe is None else prepared(str(path), chosen, recipe)
    if audio is not None:  # which knows its own rates
        heard = audio_weights(str(audio), read_file(audio))
        if heard is None:
            raise BadCheckpoint(str(audio), why="no audio weights of a known layout")
        weights, chosen = {**weights, **heard.weights}, heard.given_to(chosen)
    chosen = chosen if size is None else sized(str(path), chosen, *size)
    chosen = config if config is not None else chosen
    source = f"{path} with {audio}" if audio is not None else str(path)
    fit(source, found=shapes(weights), expected=expected_shapes(chosen))
    for lora in loras:
        alpha = _LIVE_AVATAR_ALPHA if recipe == "liveavatar" else None
        weights = merged(weights, replace(lora, usual_alpha=alpha))
    return Checkpoint(path, base.layout, chosen, weights, recipe)


def expected_shapes(config: DitConfig) -> dict[str, Shape]:
    """Name and shape of every tensor that a model of this configuration needs."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Dit(config).state_dict().items()}


def _usual(layout: Layout, loras: Sequence[Lora]) -> Recipe | None:
    """How a checkpoint of this layout was distilled, where nobody says."""
    match layout:
        case Layout.STUDENT:
            return "self-forcing"
        case Layout.REALVIDEO:
            return "realvideo"
        case Layout.S2V:
            return "liveavatar" if loras else "wan2.2-s2v"
        case _:
            return None


def _open_base(path: Path) -> _Base:
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise BadCheckpoint(str(path), why="there is no such file or folder")
    if (path / "model_index.json").is_file():
        path = path / "transformer"
    if not (path / "config.json").is_file():
        why = "no config.json; give the weights file itself if it comes without one"
        raise BadCheckpoint(str(path), why=why)
    described = read_json(path / "config.json")
    match described.get("_class_name"):
        case None if "num_heads" not in described:
            config = DitConfig.read(path / "config.json")
            weights = scaled(str(path), _in_folder(path, ("model",)))
            return _Base(Layout.OWN, config, weights)
        case None | "WanModel" | "WanModel_S2V":
            config = wan_config(str(path), sizes_from_wan(str(path), described))
            weights = unwrapped(str(path), _in_folder(path, ("diffusion_pytorch_model", "model")))
            if described.get("model_type") == "s2v":
                return _Base(Layout.S2V, s2v_config(str(path), config, weights), weights)
            return _with_audio(path, _Base(Layout.WAN, config, weights))
        case "WanTransformer3DModel":
            config = wan_config(str(path), sizes_from_diffusers(str(path), described))
            weights = _in_folder(path, ("diffusion_pytorch_model",))
            weights = {from_diffusers(name): stored for name, stored in weights.items()}
            return _Base(Layout.DIFFUSERS, config, weights)
        case other:
            raise BadCheckpoint(str(path), why=f"config.json describes a {other}, not a Wan model")


def _open_file(path: Path) -> _Base:
    weights = read_file(path)
    if path.suffix in PICKLES and (student := _student(str(path), weights)):
        config = wan_config(str(path), sizes_from_shapes(str(path), student))
        if is_s2v(student):
            return _Base(Layout.REALVIDEO, s2v_config(str(path), config, student), student)
        return _Base(Layout.STUDENT, config, student)
    weights = unwrapped(str(path), weights)
    if any(name.startswith("condition_embedder.") for name in weights):
        raise BadCheckpoint(str(path), why="names of diffusers; give the folder with its config")
    beside = path.parent / "config.json"
    described = read_json(beside) if beside.is_file() else {}
    if "model_type" in described:
        sizes = sizes_from_wan(str(path), described)
    else:
        sizes = sizes_from_shapes(str(path), weights)
    config = wan_config(str(path), sizes)
    if is_s2v(weights):
        return _Base(Layout.S2V, s2v_config(str(path), config, weights), weights)
    return _with_audio(path, _Base(Layout.WAN, config, weights))


def _student(source: str, weights: Weights) -> dict[str, Stored] | None:
    for prefix in _STUDENTS:
        student = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        if student:
            return dict(unwrapped(source, student))
    return None


def _with_audio(path: Path, base: _Base) -> _Base:
    """MultiTalk's own instructions list its file among the shards of the base: look for it."""
    heard = audio_weights(str(path), base.weights)
    return _Base(base.layout, heard.given_to(base.config), heard.weights) if heard else base


def _in_folder(folder: Path, stems: tuple[str, ...]) -> Weights:
    for stem in stems:
        if weights := read_folder(folder, stem):
            return weights
    why = f"no {' or '.join(stems)}.safetensors, nor an index of it"
    if shards := sorted(folder.glob(f"{stems[0]}-*.safetensors")):
        why += f"; {len(shards)} shards are here, so fetch {stems[0]}.safetensors.index.json"
    raise BadCheckpoint(str(folder), why=why)
