"""Public layouts of Wan2.1-shaped checkpoints: what they call things, and what their sizes say.

Between the files (`tensors.py`) and the whole (`opening.py`). Names on our side are those of the
Wan2.1 repository (github.com/Wan-Video/Wan2.1, `wan/modules/model.py`); the other layouts:

- Self-Forcing and CausVid (github.com/guandeh17/Self-Forcing, `inference.py`): a pickle with
  `generator` and `generator_ema`, whose names begin with `model.` and may hold the wrappers of
  distributed training.
- diffusers (`WanTransformer3DModel`): other names throughout, the same tensors.
- Wan2.2-S2V (github.com/Wan-Video/Wan2.2, `wan/modules/s2v`): Wan2.1's, and modules of its own,
  one of which is misspelt `casual_audio_encoder`. RealVideo has the same in a Self-Forcing pickle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from services.runtime.weights import BadCheckpoint, Shape
from services.score.checkpoint.tensors import Stored, Weights
from services.score.config import (
    AnchorConfig,
    AudioConfig,
    ClipConfig,
    DitConfig,
    LatentConfig,
    ReferenceConfig,
    S2vAudio,
    TextConfig,
)
from services.score.frontend.config import Wav2Vec2FrontEnd

_HEAD_DIM = 128  # of every published Wan2.1 size; shapes alone do not tell

# Inserted anywhere in a name by wrappers of distributed and compiled training.
_WRAPPERS = re.compile(r"\b(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
# In front of a name, in any order.
_OUTER = re.compile(r"^(?:(?:model|module|diffusion_model|state_dict)\.)+")

# Wan2.2-S2V's own name for its audio encoder, and the family's mark.
_S2V_ENCODER = "casual_audio_encoder."
_INJECTOR = re.compile(r"^audio_injector\.injector\.\d{1,3}\.q\.weight$")

_FROM_DIFFUSERS = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
        (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
        (r"^condition_embedder\.time_proj\.", "time_projection.1."),
        (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
        (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
        (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
        (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
        (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
        (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
        (r"^scale_shift_table$", "head.modulation"),
        (r"^proj_out\.", "head.head."),
        (r"\.scale_shift_table$", ".modulation"),
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_out\.0\.", ".o."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.add_([kv])_proj\.", r".\1_img."),
        (r"\.norm_added_k\.", ".norm_k_img."),
        # Theirs counts the norms that have weights apart from those that have none.
        (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
        (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
        (r"\.ffn\.net\.2\.", ".ffn.2."),
    )
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a Wan2.1-shaped network's numbers are, wherever they were read."""

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    in_channels: int
    out_channels: int
    clip_dim: int | None
    text_dim: int = 4096
    text_tokens: int = 512
    freq_dim: int = 256
    eps: float = 1e-6


def unwrapped(source: str, weights: Weights) -> Weights:
    """The same tensors without the prefixes of training wrappers.

    Raises:
        BadCheckpoint: two tensors have the same name without them.
    """
    bare: dict[str, Stored] = {}
    for name, stored in weights.items():
        short = bare_name(name)
        if short in bare:
            raise BadCheckpoint(source, unexpected=[name], why=f"{short} is there more than once")
        bare[short] = stored
    return bare


def bare_name(name: str) -> str:
    """A tensor's name without the prefixes of training wrappers."""
    bare = _OUTER.sub("", _WRAPPERS.sub("", name))
    if bare.startswith(_S2V_ENCODER):
        return "audio_proj." + bare.removeprefix(_S2V_ENCODER)
    return bare


def is_s2v(weights: Weights) -> bool:
    """Whether these, under our names, are of the Wan2.2-S2V family."""
    return "audio_proj.encoder.conv1_local.conv.weight" in weights


def from_diffusers(name: str) -> str:
    """Wan2.1's name for a tensor of diffusers' `WanTransformer3DModel`."""
    for theirs, ours in _FROM_DIFFUSERS:
        name = theirs.sub(ours, name)
    return name


def sizes_from_wan(source: str, config: dict[str, Any]) -> Sizes:
    """From the `config.json` of a Wan2.1 repository.

    Raises:
        BadCheckpoint: a model of another type, or a number is absent.
    """
    kind = config.get("model_type")
    if kind not in ("t2v", "i2v", "s2v"):
        raise BadCheckpoint(source, why=f"model_type is {kind!r}; this reads t2v, i2v and s2v")
    if kind == "s2v":
        check_s2v(source, config)
    _needs(source, config, ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim"))
    config = _with_defaults(source, config, {"text_len": 512})
    return Sizes(
        dim=config["dim"],
        ffn_dim=config["ffn_dim"],
        heads=config["num_heads"],
        layers=config["num_layers"],
        in_channels=config["in_dim"],
        out_channels=config["out_dim"],
        clip_dim=ClipConfig().dim if kind == "i2v" else None,
        text_dim=config["text_dim"],
        text_tokens=config["text_len"],
        freq_dim=config["freq_dim"],
        eps=config["eps"],
    )


def sizes_from_diffusers(source: str, config: dict[str, Any]) -> Sizes:
    """From the `config.json` of a `WanTransformer3DModel`.

    Raises:
        BadCheckpoint: a number is absent.
    """
    names = ("num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers", "in_channels")
    _needs(source, config, names)
    config = _with_defaults(source, config, {"out_channels": config["in_channels"]})
    if config.get("image_dim") is not None:
        _needs(source, config, ("image_dim",))
    return Sizes(
        dim=config["num_attention_heads"] * config["attention_head_dim"],
        ffn_dim=config["ffn_dim"],
        heads=config["num_attention_heads"],
        layers=config["num_layers"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        clip_dim=config.get("image_dim"),
        text_dim=config["text_dim"],
        freq_dim=config["freq_dim"],
        eps=config["eps"],
    )


def sizes_from_shapes(source: str, weights: Weights) -> Sizes:
    """From the tensors themselves, for files that come without a config.

    Raises:
        BadCheckpoint: a tensor that tells a size is absent or has no such shape.
    """
    dim, in_channels = _shape(source, weights, "patch_embedding.weight", 5)[:2]
    picture = "img_emb.proj.1.weight" in weights
    blocks = {int(name.split(".")[1]) for name in weights if re.match(r"blocks\.\d{1,6}\.", name)}
    return Sizes(
        dim=dim,
        ffn_dim=_shape(source, weights, "blocks.0.ffn.0.weight", 2)[0],
        heads=max(1, dim // _HEAD_DIM),
        layers=max(blocks) + 1,
        in_channels=in_channels,
        out_channels=_shape(source, weights, "head.head.weight", 2)[0] // 4,
        clip_dim=_shape(source, weights, "img_emb.proj.1.weight", 2)[0] if picture else None,
        text_dim=_shape(source, weights, "text_embedding.0.weight", 2)[1],
        freq_dim=_shape(source, weights, "time_embedding.0.weight", 2)[1],
    )


def wan_config(source: str, sizes: Sizes) -> DitConfig:
    """The configuration of a network of these sizes, with our own schedule and visibility.

    Raises:
        BadCheckpoint: input channels that no published layout has, or impossible numbers.
    """
    mask = sizes.in_channels - 2 * sizes.out_channels
    if mask < 0 and sizes.in_channels != sizes.out_channels:
        why = f"{sizes.in_channels} input channels for {sizes.out_channels} of the picture"
        raise BadCheckpoint(source, why=why)
    try:
        return DitConfig(
            dim=sizes.dim,
            ffn_dim=sizes.ffn_dim,
            heads=sizes.heads,
            layers=sizes.layers,
            freq_dim=sizes.freq_dim,
            eps=sizes.eps,
            latent=LatentConfig(channels=sizes.out_channels),
            text=TextConfig(dim=sizes.text_dim, tokens=sizes.text_tokens),
            clip=ClipConfig(dim=sizes.clip_dim) if sizes.clip_dim else None,
            anchor=AnchorConfig(mask_channels=mask) if mask >= 0 else None,
        )
    except (ValueError, TypeError) as error:
        raise BadCheckpoint(source, why=str(error)) from error


def s2v_config(source: str, config: DitConfig, weights: Weights) -> DitConfig:
    """A Wan2.2-S2V network around a transformer's sizes; the rest is in its tensors' shapes.

    Raises:
        BadCheckpoint: a tensor that tells a size is absent, or its sizes are nobody's.
    """
    states = _shape(source, weights, "audio_proj.weights", 4)[1]
    wide, width, _ = _shape(source, weights, "audio_proj.encoder.conv1_local.conv.weight", 3)
    injectors = {int(n.split(".")[2]) for n in weights if _INJECTOR.match(n)}
    layers = tuple(layer for layer in S2vAudio().layers if layer < config.layers)
    if len(layers) != len(injectors):
        why = f"{len(injectors)} audio injectors in {config.layers} layers: expected {len(layers)}"
        raise BadCheckpoint(source, why=why)
    try:
        adapter = S2vAudio(states=states, tokens=wide // (config.dim // 4), layers=layers)
        return replace(
            config,
            anchor=None,
            reference=ReferenceConfig(),
            audio=AudioConfig(
                adapter=adapter,
                front_end=Wav2Vec2FrontEnd(states="all"),
                embedding_dim=states * width,
                per_latent=4,
                before=5,
                after=0,
                silence="heard",
                via=30,
            ),
        )
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise BadCheckpoint(source, why=str(error)) from error


def check_s2v(source: str, described: dict[str, Any]) -> None:
    """Whether the `config.json` of a Wan2.2-S2V repository describes what is built here.

    Raises:
        BadCheckpoint: it says otherwise.
    """
    known: dict[str, tuple[object, ...]] = {
        "enable_adain": (True,),
        "adain_mode": ("attn_norm", None),
        "enable_motioner": (False, None),
        "zero_timestep": (True, None),
        "audio_inject_layers": (list(S2vAudio().layers), None),
    }
    for name, expected in known.items():
        if described.get(name) not in expected:
            why = f"config.json has {name} {described.get(name)!r}; this reads {expected[0]!r}"
            raise BadCheckpoint(source, why=why)


def _needs(source: str, config: dict[str, Any], names: tuple[str, ...]) -> None:
    absent = [name for name in names if type(config.get(name)) is not int]
    if absent:
        raise BadCheckpoint(source, why=f"config.json lacks the number of {', '.join(absent)}")


def _with_defaults(source: str, config: dict[str, Any], more: dict[str, int]) -> dict[str, Any]:
    """`config` with what the layouts leave to defaults; what is there must be of the same type."""
    defaults = {"text_dim": 4096, "freq_dim": 256, "eps": 1e-6, **more}
    given = {name: config[name] for name in defaults if config.get(name) is not None}
    for name, value in given.items():
        if type(value) is not type(defaults[name]):
            raise BadCheckpoint(source, why=f"config.json has {name} {value!r}")
    return {**config, **defaults, **given}


def _shape(source: str, weights: Weights, name: str, rank: int) -> Shape:
    if name not in weights:
        raise BadCheckpoint(source, missing=[name], why="not a Wan2.1-shaped transformer")
    shape = weights[name].shape
    if len(shape) != rank:
        raise BadCheckpoint(source, why=f"{name} has shape {list(shape)}")
    return shape
