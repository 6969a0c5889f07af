"""Look for weaknesses with checkov in what the chart renders and in the Dockerfiles.

    python -m helm.scan CHECKOV

checkov wants older versions of packages that the services use, so `make scan` gives it an
environment of its own. What it may find is in `accepted.yaml`, with reasons.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from helm.schema import CHART
from helm.tools import program

ACCEPTED = Path(__file__).parent / "accepted.yaml"
IMAGES = CHART.parents[1] / "images"


def accepted() -> dict[str, str]:
    """Reasons by check."""
    found: dict[str, str] = yaml.safe_load(ACCEPTED.read_text())
    return found


def findings(checkov: str) -> dict[str, list[str]]:
    """What fails, by check: the name of the check, and where.

    Raises:
        CalledProcessError: helm cannot render a profile.
    """
    with tempfile.TemporaryDirectory() as folder:
        _lay_out(Path(folder))
        frameworks = ["--framework", "kubernetes", "dockerfile"]
        told = subprocess.run(
            [checkov, "--directory", folder, *frameworks, "--quiet", "--output", "json"],
            capture_output=True,
            text=True,
            check=False,  # it fails whenever it finds something
        )
    reports: list[dict[str, Any]] = json.loads(told.stdout)
    found: dict[str, list[str]] = {}
    for report in reports:
        for check in report["results"]["failed_checks"]:
            where = found.setdefault(check["check_id"], [check["check_name"]])
            where.append(check["resource"])
    return found


def _lay_out(folder: Path) -> None:
    helm = str(program("4"))
    for profile in CHART.glob("values-*.yaml"):
        command = [helm, "template", "scan", str(CHART), "--values", str(profile)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (folder / profile.name).write_text(done.stdout)
    for image in IMAGES.glob("*.Dockerfile"):
        (folder / image.stem).mkdir()
        (folder / image.stem / "Dockerfile").write_text(image.read_text())


def main() -> None:
    found, known = findings(sys.argv[1]), accepted()
    for check in sorted(found.keys() - known.keys()):
        print(check, *found[check], sep="\n  ")
    for check in sorted(known.keys() - found.keys()):
        print(f"{check} is accepted but not found any more")
    if found.keys() != known.keys():
        sys.exit(1)


if __name__ == "__main__":
    main()
