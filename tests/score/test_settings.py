"""What an operator can tell a score replica, by environment and by arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime.settings import BadSettings, read
from services.score.settings import Settings


def test_the_environment_and_arguments_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TM_SCORE_MODEL", "/models/tiny")
    monkeypatch.setenv("TM_SCORE_TERMS__MAX_AGE_SECONDS", "90")
    monkeypatch.setenv("TM_SCORE_LORAS", '[{"path": "a.safetensors", "alpha": 64}]')
    monkeypatch.setenv("TM_SCORE_SESSIONS", "2")
    settings = read(Settings, {"sessions": 4})
    assert settings.model == Path("/models/tiny")
    assert settings.terms.max_age_seconds == 90
    assert settings.loras[0].alpha == 64
    assert settings.sessions == 4


@pytest.mark.parametrize(
    "args",
    [{"ranks": 2}, {"replicas": {"most": 2}}, {"replicas": {"least": 2}}, {"device": "tpu"}, {}],
    ids=str,
)
def test_what_cannot_be_is_refused_at_start(args: dict[str, object]) -> None:
    if args:
        args = {"model": "/models/tiny", **args}
    with pytest.raises(BadSettings):
        read(Settings, args)


def test_many_replicas_are_told_one_number_format() -> None:
    args = {"model": "/models/tiny", "ranks": 2, "replicas": {"most": 3}, "dtype": "bfloat16"}
    assert read(Settings, args).dtype == "bfloat16"
