"""The chart as tests see it: rendered by real helm programs, each rendering made once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.schema import CHART
from helm.tools import WHEELS, program

MAJORS = tuple(WHEELS)
PROFILES = tuple(sorted(file.stem.removeprefix("values-") for file in CHART.glob("values-*.yaml")))
RELEASE, NAMESPACE = "calls", "characters"
NAME = f"{RELEASE}-talkingmachines"

Manifest = dict[str, Any]


def helm(*arguments: str, major: str = "4", stdin: str | None = None) -> str:
    """What a helm command prints.

    Raises:
        CalledProcessError: it failed; `stderr` says why.
    """
    if not program(major).exists():
        pytest.skip(f"NOT RUN: no helm {major}; python -m helm.tools brings it")
    done = subprocess.run(
        [str(program(major)), *arguments], input=stdin, capture_output=True, text=True, check=True
    )
    return done.stdout


def values_of(profile: str) -> list[str]:
    return ["--values", str(CHART / f"values-{profile}.yaml")]


@cache
def text(profile: str, major: str = "4", settings: Sequence[str] = ()) -> str:
    extra = [part for setting in settings for part in ("--set", setting)]
    where = ["--namespace", NAMESPACE, *values_of(profile), *extra]
    return helm("template", RELEASE, str(CHART), *where, major=major)


def manifests(profile: str, *settings: str, major: str = "4") -> list[Manifest]:
    rendered = yaml.load_all(text(profile, major, settings), Loader=yaml.CSafeLoader)
    return [manifest for manifest in rendered if manifest]


def refusal(profile: str, *settings: str) -> str:
    """Why helm does not render these values."""
    with pytest.raises(subprocess.CalledProcessError) as failed:
        text(profile, "4", settings)
    return str(failed.value.stderr)


def of_kind(found: Sequence[Manifest], kind: str) -> dict[str, Manifest]:
    """Objects of a kind by their name, without the release's."""
    return {
        manifest["metadata"]["name"].removeprefix(f"{NAME}-"): manifest
        for manifest in found
        if manifest["kind"] == kind
    }


def pods(found: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod that the chart leads to, as (name, spec)."""
    for manifest in found:
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        match manifest["kind"]:
            case "Pod":
                yield name, spec
            case "Deployment" | "StatefulSet" | "Job":
                yield name, spec["template"]["spec"]
            case "RayService":
                cluster = spec["rayClusterConfig"]
                yield f"{name}-head", cluster["headGroupSpec"]["template"]["spec"]
                for group in cluster["workerGroupSpecs"]:
                    yield f"{name}-worker", group["template"]["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def file(relative: str) -> Path:
    return CHART / relative
