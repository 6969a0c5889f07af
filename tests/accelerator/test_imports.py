"""The package needs torch and the standard library alone: GPU machines run it from a checkout."""

import ast
import sys
from pathlib import Path

import services.accelerator

ALLOWED = {"torch", "services", "__future__"} | sys.stdlib_module_names


def test_accelerator_imports_torch_alone() -> None:
    (folder,) = services.accelerator.__path__
    files = list(Path(folder).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in ALLOWED, f"{file.name} imports {name}"
                if name.startswith("services"):
                    assert name.startswith("services.accelerator")
