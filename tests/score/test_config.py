"""A configuration is read strictly, and what follows from it is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.runtime.weights import BadCheckpoint
from services.score import strict_json
from services.score.config import DitConfig
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
