"""A configuration is read strictly, and what follows from it is right."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from services.runtime import strict_json
from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.tensors import read_json
from services.score.config import DitConfig, FantasyTalkingAudio, MultiTalkAudio, StreamConfig
from services.score.presets import NAMES, preset
from tests.score import small

WRONG = {
    "config.dims": lambda c: c.update(dims=3),
    "config.dim": lambda c: c.pop("dim"),
    "config.heads": lambda c: c.update(heads=7),
    "config.layers": lambda c: c.update(layers=True),
    "config.eps": lambda c: c.update(eps="small"),
    "config.patch": lambda c: c.update(patch=[1, 2]),
    r"config.patch\[0\]": lambda c: c.update(patch=[2, 2, 2]),
    "config.prediction": lambda c: c.update(prediction="noise"),
    "config.audio.adapter.kind": lambda c: c["audio"]["adapter"].update(kind="guess"),
    "config.audio.adapter.heads": lambda c: c["audio"]["adapter"].update(heads=5),
    "config.audio.per_latent": lambda c: c["audio"].update(per_latent=3),
    "config.context.chunks": lambda c: c["context"].update(chunks=2),
    "config.positions.own": lambda c: c["positions"].update(own=3),
    "config.schedule.levels": lambda c: c["schedule"].update(levels=[0.5, 1.0]),
    "config.schedule.shift": lambda c: c["schedule"].update(shift=0),
    "config.stream": lambda c: c["stream"].update(width=500),
    "config.latent": lambda c: c.update(latent=[16]),
}

# Numbers that no model has, by the path of their field.
LIES: dict[str, tuple[object, ...]] = {
    "dim": (0, -48, 1 << 60),
    "ffn_dim": (0, -1, 1 << 60),
    "heads": (0, -4),
    "layers": (0, -1, 1_000_000_000),
    "freq_dim": (0, -2, 1 << 60),
    "eps": (0, -1e-6, math.nan, math.inf, 10**400),
    "patch.1": (0, -2),
    "text.dim": (0, -1, 1 << 60),
    "text.tokens": (0, -1, 1 << 60),
    "clip.dim": (0, -1, 1 << 60),
    "clip.tokens": (0, -1, 1 << 60),
    "anchor.mask_channels": (-1, 1 << 60),
    "latent.channels": (0, -4, 1 << 60),
    "latent.stride.0": (0, -4),
    "latent.stride.2": (0, -8),
    "stream.fps": (0, -25, 1 << 60),
    "stream.sample_rate": (0, -16_000),
    "stream.latents_per_chunk": (0, -3, 1 << 60),
    "stream.width": (0, -32, 1 << 60),
    "stream.height": (0, -64, 1 << 60),
    "context.chunks": (0, -1),
    "context.replay": (0, -1, 1 << 60),
    "context.level": (-0.1, 1.0, math.nan, math.inf),
    "positions.anchor": (-1, 1 << 60),
    "positions.own": (-1, 1 << 60),
    "schedule.shift": (0, -3.0, math.nan, math.inf),
    "schedule.levels.1": (-0.5, 0.0, math.nan),
    "audio.embedding_dim": (0, -1, 1 << 60),
    "audio.per_latent": (0, -1, 1 << 60),
    "audio.before": (-1, 1 << 60),
    "audio.after": (-1, 1 << 60),
    "audio.adapter.width": (0, -24, 1 << 60),
    "audio.adapter.depth": (-1, 1_000_000_000),
    "audio.adapter.heads": (0, -2),
    "audio.front_end.width": (0, -4, 1 << 60),
    "audio.front_end.kernel": (0, -5, 1 << 60),
    "audio.front_end.stride": (0, -4, 1 << 60),
    "audio.front_end.lookahead": (-1, 1 << 60),
    "audio.front_end.dilations.0": (0, -1, 1 << 60),
    "audio.front_end.mel.hop": (0, -160, 1 << 60),
    "audio.front_end.mel.bands": (0, -80, 1 << 60),
    "audio.front_end.mel.low": (0.0, math.nan, math.inf),
    "audio.front_end.mel.high": (math.nan, math.inf),
    "audio.front_end.mel.sample_rate": (0, -1),
}


@pytest.mark.parametrize("path", LIES)
def test_numbers_that_no_model_has_are_refused_by_field(path: str, tmp_path: Path) -> None:
    *above, last = path.split(".")
    for lie in LIES[path]:
        written = strict_json.write(small.config())
        inner: Any = written
        for name in above:
            inner = inner[name]
        inner[int(last) if last.isdigit() else last] = lie
        file = tmp_path / "config.json"
        file.write_text(json.dumps(written))
        with pytest.raises(BadCheckpoint) as refused:
            DitConfig.read(file)
        assert (above[-1] if last.isdigit() else last) in str(refused.value)
        assert "expected" in str(refused.value)
        assert "got" in str(refused.value)
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", [FantasyTalkingAudio, MultiTalkAudio])
@pytest.mark.parametrize("lie", [0, -1, 1 << 60])
def test_every_adapters_sizes_are_checked(kind: type, lie: int) -> None:
    for name in (field.name for field in fields(kind) if field.name != "kind"):
        with pytest.raises(strict_json.Misfit, match=rf"config\.audio\.adapter\.{name}"):
            small.config(adapter=kind(**{name: lie}))


def test_what_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"dim": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(BadCheckpoint, match="nested too deeply"):
        DitConfig.read(file)
    with pytest.raises(BadCheckpoint, match="nested too deeply"):
        read_json(file)


def test_a_chunk_of_too_many_tokens_is_refused() -> None:
    with pytest.raises(strict_json.Misfit, match=r"config\.stream: .* tokens in a chunk"):
        small.config(stream=StreamConfig(fps=25, width=16_384, height=16_384))


@pytest.mark.parametrize("name", NAMES)
def test_presets_survive_a_file(name: str, tmp_path: Path) -> None:
    preset(name).write(tmp_path / "config.json")
    assert DitConfig.read(tmp_path / "config.json") == preset(name)


@pytest.mark.parametrize("field", WRONG)
def test_what_does_not_fit_is_refused_by_field(field: str, tmp_path: Path) -> None:
    written = strict_json.write(small.config())
    assert isinstance(written, dict)
    WRONG[field](written)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(written))
    with pytest.raises(BadCheckpoint, match=field) as refused:
        DitConfig.read(file)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"dim": 8'])
def test_what_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(BadCheckpoint):
        DitConfig.read(file)
    with pytest.raises(BadCheckpoint):
        DitConfig.read(tmp_path / "absent.json")


def test_whole_numbers_are_numbers_but_truth_is_not() -> None:
    written = strict_json.write(small.config())
    assert isinstance(written, dict)
    written["schedule"]["shift"] = 3
    assert strict_json.read(DitConfig, written).schedule.shift == 3.0
    written["schedule"]["shift"] = True
    with pytest.raises(strict_json.Misfit, match=r"schedule\.shift"):
        strict_json.read(DitConfig, written)


def test_the_papers_geometry() -> None:
    config = preset("tm-18b")
    assert config.in_channels == 36
    assert config.frame_tokens == 1024
    assert config.chunk_tokens == 3072
    assert config.head_dim == 128
    assert config.spec.chunk_seconds == 0.75
    assert config.audio is not None
    assert config.audio.window == 6 * config.audio.per_latent, "itself and five adjacent latents"


def test_the_lookahead_follows_from_the_window_and_the_front_end() -> None:
    config = small.config()
    assert config.audio is not None
    front_end = config.audio.front_end
    assert config.samples_per_embedding == front_end.hop == 640
    expected = config.audio.after * 640 + front_end.lookahead_samples
    assert config.spec.lookahead_samples == expected
    assert config.spec.lookahead_seconds == pytest.approx(expected / 16_000)
