"""Generate `talkingmachines/v1/` from the contracts, or check that it is fresh.

The directories under `protos/` mirror the package, so generated imports are right as they come.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("talkingmachines") / "v1"


def generate(into: Path) -> dict[Path, bytes]:
    """Compile every contract below `into`; returns the files by their path in the repository."""
    contracts = sorted(PROTOS.glob("talkingmachines/v1/*.proto"))
    # mypy-protobuf's plugins are scripts of the same environment as this interpreter.
    scripts = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--grpc_python_out={into}",
        f"--mypy_grpc_out=quiet:{into}",
        *map(str, contracts),
    ]
    if protoc.main(arguments):
        raise SystemExit("protoc refused the contracts")
    made = {path.relative_to(into): path.read_bytes() for path in into.rglob("*.py*")}
    services = {path.stem for path in contracts if "\nservice " in path.read_text()}
    return {path: text for path, text in made.items() if _has_service(path, services)} | {
        PACKAGE / "__init__.py": b"",
    }


def stale() -> list[Path]:
    """Stubs here that differ from what the contracts give, are missing or too many."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
    here = {
        path.relative_to(ROOT): path.read_bytes()
        for path in (ROOT / PACKAGE).glob("*")
        if path.is_file()
    }
    return sorted(path for path in fresh | here if fresh.get(path) != here.get(path))


def write() -> None:
    """Replace the stubs in the repository."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
    target = ROOT / PACKAGE
    target.mkdir(exist_ok=True)
    for path in target.glob("*_pb2*"):
        path.unlink()
    for path, text in fresh.items():
        (ROOT / path).write_bytes(text)


def _has_service(path: Path, services: set[str]) -> bool:
    """Whether a stub says anything: gRPC stubs of contracts without a service are empty shells."""
    return "_pb2_grpc" not in path.name or path.name.split("_pb2_grpc")[0] in services


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when stale")
    if not parser.parse_args().check:
        write()
        return
    old = stale()
    if old:
        raise SystemExit("stale, run `make protos`:\n" + "\n".join(f"  {path}" for path in old))


if __name__ == "__main__":
    main()
