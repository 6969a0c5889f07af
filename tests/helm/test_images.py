"""What can be known of images without building them: no engine for containers runs in the tests.

Built images, their sizes and what they do on a GPU are for a machine that has Docker.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.schema import services
from services.runtime.settings import read
from tests.helm.chart import file

ROOT = Path(__file__).parents[2]
IMAGES = sorted((ROOT / "images").glob("*.Dockerfile"))
COMPOSE = ROOT / "images" / "compose.yaml"
# Of a service, as the Compose specification has them; ours need no others.
KEYS = {
    *("build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image"),
    *("ports", "read_only", "restart", "secrets", "security_opt", "tmpfs", "user", "volumes"),
}
each_image = pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)


def instructions(image: Path) -> list[str]:
    text = re.sub(r"\\\n", " ", image.read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def sources(image: Path) -> list[str]:
    """What is copied out of the checkout."""
    copies = [line.split()[1:] for line in instructions(image) if line.startswith("COPY ")]
    return [name for copy in copies if not copy[0].startswith("--from") for name in copy[:-1]]


@each_image
def test_lint_finds_nothing(image: Path) -> None:
    hadolint = Path(sys.prefix) / "bin" / "hadolint"
    done = subprocess.run([str(hadolint), str(image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@each_image
def test_sources_exist_and_reach_the_build(image: Path) -> None:
    admitted = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for source in sources(image):
        assert source.split("/")[0] in admitted, source
        assert (ROOT / source).exists(), source


@each_image
def test_extras_exist(image: Path) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"'\.\[([a-z,]+)\]'", image.read_text()):
        assert set(extras.split(",")) <= set(known)


@each_image
def test_it_runs_as_nobody_and_is_pinned(image: Path) -> None:
    lines = instructions(image)
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert any(line.startswith(("ARG PYTHON=", "ARG RUNTIME=")) for line in lines)
    assert "latest" not in image.read_text()
    assert sum(line.startswith("LABEL") for line in lines) == 1


def test_images_have_the_version_that_the_chart_names() -> None:
    chart = yaml.safe_load(file("Chart.yaml").read_text())
    values = yaml.safe_load(file("values.yaml").read_text())
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    assert values["engines"]["rayVersion"] == pins["ray"]
    for image in IMAGES:
        assert f"ARG VERSION={chart['appVersion']}" in image.read_text()


@each_image
def test_copied_code_imports_nothing_that_stays_behind(image: Path, tmp_path: Path) -> None:
    """The service's modules, from a folder with only what the image gets."""
    copied = [source for source in sources(image) if source.startswith(("services/", "loadtest"))]
    for source in copied:
        target = tmp_path / source
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(ROOT / source)
    mains = [
        f"{source.replace('/', '.')}.settings"
        for source in copied
        if (ROOT / source / "settings.py").exists()
    ]
    mains += ["loadtest.stage"] if "loadtest" in copied else []
    code = f"import importlib; [importlib.import_module(name) for name in {mains}]"
    subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]},
        check=True,
    )


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def test_compose_hardens_every_container() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert not service["user"].startswith("0"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_compose_names_only_what_it_has() -> None:
    """Services, volumes, secrets, images' files and ports that others call."""
    found = compose()
    services_, ports = found["services"], {"score": 50051, "vae": 50052, "bridge": 50053}
    for name, service in services_.items():
        assert set(service) <= KEYS, name
        assert set(service.get("depends_on", {})) <= set(services_), name
        assert set(service.get("secrets", [])) <= set(found["secrets"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in found["volumes"] or (COMPOSE.parent / source).exists(), volume
        if build := service.get("build"):
            assert (COMPOSE.parent / build["context"] / build["dockerfile"]).exists(), name
    called = services_["gateway"]["environment"]
    for name, port in ports.items():
        assert called[f"TM_GATEWAY_{name.upper()}__ADDRESS"] == f"{name}:{port}"
        assert services()[name].model_fields["listen"].default.port == port
    # What is published is what the gateway listens at: programs' calls, and the page.
    published = {port.rpartition(":")[2] for port in services_["gateway"]["ports"]}
    listens = services()["gateway"].model_fields["listen"].default.port
    assert published == {str(listens), called["TM_GATEWAY_WEB__PORT"]}


def test_compose_gives_the_gpu_to_engines() -> None:
    gpu = yaml.safe_load((COMPOSE.parent / "compose.gpu.yaml").read_text())["services"]
    assert set(gpu) == {"score", "vae"}
    for service in gpu.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert device["count"] >= 1


@pytest.mark.parametrize("service", ["gateway", "score", "vae", "bridge"])
def test_compose_gives_valid_settings(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("token")
    for name in [name for name in os.environ if name.startswith("TM_")]:
        monkeypatch.delenv(name)
    for name, value in compose()["services"][service]["environment"].items():
        plain = re.sub(r"\$\{\w+:-(\w*)\}", r"\1", value)
        monkeypatch.setenv(name, str(token) if value.startswith("/run/secrets") else plain)
    read(services()[service])
