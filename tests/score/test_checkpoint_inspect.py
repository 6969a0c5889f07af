"""The published sizes are recognised on the meta device, and `inspect` says so in words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.runtime.weights import BadCheckpoint, Shape
from services.score.cache import Context, Window
from services.score.checkpoint.__main__ import main
from services.score.checkpoint.audio import audio_weights
from services.score.checkpoint.layouts import (
    from_diffusers,
    sizes_from_diffusers,
    sizes_from_shapes,
    sizes_from_wan,
    wan_config,
)
from services.score.checkpoint.loading import load_front_end, save, save_front_end
from services.score.checkpoint.opening import expected_shapes, open_checkpoint
from services.score.checkpoint.tensors import Stored, Weights, count
from services.score.config import DitConfig
from services.score.frontend.features import whole_clip
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.presets import preset
from tests.score.checkpoints import (
    CPU,
    FANTASYTALKING,
    I2V,
    MULTITALK,
    T2V,
    only_audio,
    tensors,
    wan_json,
    write_fantasytalking_pickle,
    write_lora,
    write_wan,
)
from tests.score.frontends import network, speech

# What the published repositories' config.json say.
_SHARED = {"_class_name": "WanModel", "freq_dim": 256, "out_dim": 16, "text_len": 512, "eps": 1e-6}
_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
_1_3B = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
PUBLISHED = [
    ({**_SHARED, **_1_3B, "model_type": "t2v", "in_dim": 16}, 1.419),
    ({**_SHARED, **_14B, "model_type": "t2v", "in_dim": 16}, 14.288),
    ({**_SHARED, **_14B, "model_type": "i2v", "in_dim": 36}, 16.395),
]
published = pytest.mark.parametrize(
    ("described", "billions"), PUBLISHED, ids=["1.3B", "14B", "I2V"]
)


def unread(shapes: dict[str, Shape]) -> Weights:
    def read(device: torch.device) -> torch.Tensor:
        raise AssertionError(f"headers alone, not values on {device}")

    return {name: Stored(shape, torch.float32, read) for name, shape in shapes.items()}


@published
def test_published_sizes(described: dict[str, object], billions: float) -> None:
    sizes = sizes_from_wan("repository", described)
    weights = unread(expected_shapes(wan_config("repository", sizes)))
    assert round(count(weights) / 1e9, 3) == billions
    assert sizes_from_shapes("file", weights) == sizes


def test_a_diffusers_config_says_the_same() -> None:
    described = {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 36,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "image_dim": 1280,
        "added_kv_proj_dim": 5120,
        "eps": 1e-6,
    }
    assert sizes_from_diffusers("a", described) == sizes_from_wan("b", PUBLISHED[2][0])
    with pytest.raises(BadCheckpoint, match="lacks the number of ffn_dim, num_layers"):
        sizes_from_diffusers("a", {**described, "ffn_dim": None, "num_layers": "40"})


def test_names_that_are_no_longer_theirs_stay() -> None:
    for name in expected_shapes(replace(I2V, audio=None)):
        if "norm3" not in name:
            assert from_diffusers(name) == name


def test_published_audio_weights_decide_how_a_14b_transformer_hears() -> None:
    base = wan_config("repository", sizes_from_wan("repository", PUBLISHED[2][0]))
    multitalk = {
        "audio_proj.proj1.weight": (512, 46080),
        "audio_proj.proj1_vf.weight": (512, 73728),
        "audio_proj.proj3.weight": (24576, 512),
        "audio_proj.norm.weight": (768,),
    }
    heard = audio_weights("file", unread(dict(multitalk)))
    assert heard is not None
    config = heard.given_to(base)
    assert config.audio is not None
    assert (config.audio.embedding_dim, config.audio.window, config.stream.fps) == (9216, 8, 25)
    grown = count(unread(expected_shapes(config))) - count(unread(expected_shapes(base)))
    assert round(grown / 1e9, 3) == 2.487
    heard = audio_weights("file", unread({"proj_model.proj.weight": (2048, 768)}))
    assert heard is not None
    config = heard.given_to(base)
    assert config.audio is not None
    assert (config.audio.embedding_dim, config.audio.window) == (768, 17)
    grown = count(unread(expected_shapes(config))) - count(unread(expected_shapes(base)))
    assert round(grown / 1e9, 2) == 0.84


def said(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def test_inspect_a_wan_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wan(tmp_path, I2V, tensors(I2V), shards=2)
    (tmp_path / "Wan2.1_VAE.pth").touch()
    out = said(capsys, tmp_path)
    assert "image-to-video transformer in Wan2.1 layout" in out
    assert "parameters, float32" in out
    assert "hears none" in out
    assert "assumed: this layout does not say" in out
    assert "video VAE: Wan2.1_VAE.pth, found" in out
    assert "text encoder: models_t5_umt5-xxl-enc-bf16.pth, not beside it" in out
    assert "picture encoder: models_clip" in out


def test_inspect_a_student_with_audio_and_adapters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tensors(replace(I2V, audio=FANTASYTALKING))
    audio = only_audio(weights)
    student = {f"model.{name}": w for name, w in weights.items() if name not in audio}
    torch.save({"generator": student}, tmp_path / "model.pt")
    write_fantasytalking_pickle(tmp_path / "f.ckpt", audio)
    write_lora(
        tmp_path / "l.safetensors", {"blocks.0.ffn.0": (torch.ones(2, 128), torch.ones(64, 2))}
    )
    out = said(
        capsys, tmp_path / "model.pt", "--audio", tmp_path / "f.ckpt", "--lora",
        f"{tmp_path / 'l.safetensors'}=4",
    )  # fmt: skip
    assert "Self-Forcing / CausVid pickle" in out
    assert "FantasyTalking's adapter after wav2vec2; a latent frame hears 17 embeddings" in out
    assert "1 merged while loading" in out
    assert "at 24 fps" in out
    assert "a wav2vec 2.0 folder" in out


def test_inspect_parts_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = only_audio(tensors(replace(I2V, audio=MULTITALK)))
    save_file(audio, tmp_path / "multitalk.safetensors")
    out = said(capsys, tmp_path / "multitalk.safetensors")
    assert "audio weights of MultiTalk or InfiniteTalk" in out
    assert "needs     the Wan2.1 image-to-video transformer" in out
    write_lora(
        tmp_path / "l.safetensors", {"blocks.0.ffn.0": (torch.ones(2, 128), torch.ones(64, 2))}
    )
    out = said(capsys, tmp_path / "l.safetensors")
    assert "low-rank adapters, 1 pairs" in out
    assert "alpha" in out


def test_inspect_adapters_counts_pairs_and_asks_for_an_alpha_only_where_none_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = {f"blocks.{n}.ffn.0": (torch.ones(2 + n, 9), torch.ones(9, 2 + n)) for n in (0, 1)}
    file = write_lora(tmp_path / "adapter_model.safetensors", pairs, prefix="")
    out = said(capsys, tmp_path)
    assert "2 pairs of rank 2 to 3" in out
    assert "needs     its alpha" in out
    save_file(load_file(file) | {f"{name}.alpha": torch.tensor(1.0) for name in pairs}, file)
    out = said(capsys, tmp_path)
    assert "2 pairs" in out
    assert "its alpha" not in out


def test_a_path_may_hold_an_equals_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_wan(tmp_path / "base", T2V, tensors(T2V))
    pairs = {"blocks.0.self_attn.q": (torch.ones(2, 256), torch.ones(256, 2))}
    file = write_lora(tmp_path / "step=900.safetensors", pairs)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2}))
    assert "1 merged" in said(capsys, base, "--lora", file)
    assert "1 merged" in said(capsys, base, "--lora", f"{file}=4")
    with pytest.raises(SystemExit):
        main(["inspect", str(base), "--lora", f"{file}=much"])
    assert "expected PATH or PATH=ALPHA with a number" in capsys.readouterr().err


def test_inspect_our_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = preset("tiny")
    save(tmp_path, config, tensors(config).items())
    out = said(capsys, tmp_path)
    assert "text-to-video" not in out
    assert "front end: front_end.safetensors, not beside it" in out
    assert "assumed" not in out
    assert "256x256 at 25 fps, chunks of 480 ms, speech at 16000 Hz" in out
    window = Window(config, rows=1, heads=config.heads, device=CPU, dtype=torch.bfloat16)
    assert f"{Context(config, window).nbytes / 1e6:.1f} MB per session" in out


def test_inspect_fails_on_a_misfit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tensors(T2V)
    del weights["head.modulation"]
    write_wan(tmp_path, T2V, weights)
    assert main(["inspect", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert "1 missing (head.modulation)" in err


def hearing_folder(folder: Path, config: DitConfig) -> DitConfig:
    save(folder, config, tensors(config).items())
    return config


def test_the_front_end_travels_with_its_transformer(tmp_path: Path) -> None:
    config = hearing_folder(tmp_path, preset("tiny"))
    assert config.audio is not None
    with pytest.raises(BadCheckpoint, match="the front end's weights are absent"):
        load_front_end(open_checkpoint(tmp_path), device=CPU)
    encoder = SpeechEncoder(config.audio.front_end)  # type: ignore[arg-type]
    encoder.offset.normal_()
    save_front_end(tmp_path, encoder)
    loaded = load_front_end(open_checkpoint(tmp_path), device=CPU)
    clip = speech(8_000)
    assert torch.equal(whole_clip(loaded, clip), whole_clip(encoder, clip))
    save_file({"offset": torch.zeros(134)}, tmp_path / "front_end.safetensors")
    with pytest.raises(BadCheckpoint, match="missing"):
        load_front_end(open_checkpoint(tmp_path), device=CPU)


def test_a_wav2vec_folder_must_have_the_width_that_is_heard(tmp_path: Path) -> None:
    audio = replace(FANTASYTALKING, embedding_dim=16)
    hearing_folder(tmp_path, replace(I2V, audio=audio))
    network().save_pretrained(tmp_path / "wav2vec2")
    loaded = load_front_end(open_checkpoint(tmp_path), device=CPU)
    assert loaded.feature_shape == (16,)
    hearing_folder(tmp_path, replace(I2V, audio=FANTASYTALKING))
    with pytest.raises(BadCheckpoint, match="embeddings of 10 numbers, its front end gives 16"):
        load_front_end(open_checkpoint(tmp_path), device=CPU, wav2vec=tmp_path / "wav2vec2")
    hearing_folder(tmp_path, I2V)
    with pytest.raises(BadCheckpoint, match="hears nothing"):
        load_front_end(open_checkpoint(tmp_path), device=CPU)


def test_what_was_published_is_what_is_written() -> None:
    assert set(wan_json(I2V)) - {"text_dim", "_diffusers_version"} == set(PUBLISHED[2][0])
