"""What a source file imports, without importing it."""

import ast
from pathlib import Path


def imported(file: Path) -> list[str]:
    """Full names of the modules that `file` imports, wherever in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names
