"""The package needs torch and the standard library alone: GPU machines run it from a checkout."""

import sys
from pathlib import Path

import services.accelerator.replay
from tests.imports import imported

ALLOWED = {"torch", "services", "__future__"} | sys.stdlib_module_names


def test_accelerator_imports_torch_alone() -> None:
    files = list(Path(services.accelerator.replay.__file__).parent.glob("*.py"))
    assert files
    for file in files:
        for name in imported(file):
            assert name.split(".")[0] in ALLOWED, f"{file.name} imports {name}"
            if name.startswith("services"):
                assert name.startswith("services.accelerator")
