"""What an operator can tell a VAE replica."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.runtime.settings import BadSettings, read
from services.vae.settings import Settings


def test_the_environment_reaches_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TM_VAE_MODEL", "/models/vae")
    monkeypatch.setenv("TM_VAE_TERMS__MAX_AGE_SECONDS", "5")
    monkeypatch.setenv("TM_VAE_REHEARSAL__WIDTH", "256")
    monkeypatch.setenv("TM_VAE_REHEARSAL__HEIGHT", "192")
    monkeypatch.setenv("TM_VAE_ENCODING__QUALITY", "50")
    monkeypatch.setenv("TM_VAE_REPLICAS__MOST", "3")
    settings = read(Settings, {"sessions": 2})
    assert (settings.model, settings.sessions) == (Path("/models/vae"), 2)
    assert settings.terms.max_age_seconds == 5
    assert settings.rehearsal is not None
    assert (settings.rehearsal.width, settings.rehearsal.height) == (256, 192)
    assert (settings.encoding.quality, settings.replicas.most) == (50, 3)


def test_every_mistake_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TM_VAE_ENCODING__BITRATE", "1")
    monkeypatch.setenv("TM_VAE_DEVICE", "toaster")
    monkeypatch.setenv("TM_VAE_BATCH", "0")
    monkeypatch.setenv("TM_VAE_WIDTH", "512")
    with pytest.raises(BadSettings) as told:
        read(Settings)
    names = {line.partition(":")[0] for line in told.value.mistakes}
    wrong = {"ENCODING__BITRATE", "DEVICE", "BATCH", "WIDTH", "MODEL"}
    assert names == {f"TM_VAE_{name}" for name in wrong}


def test_a_model_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "services.vae"],
        env={"TM_VAE_MODEL": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "config.json" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
