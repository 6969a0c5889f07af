"""What an installation of the client package brings along."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import files, packages_distributions
from importlib.resources import files as resources
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "talkingmachines"


def imported() -> set[str]:
    """Every module of others that the package imports, generated stubs included."""
    found: set[str] = set()
    for source in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name for name in inner if is_module(name)} or {node.module}
    ours = sys.stdlib_module_names | {"talkingmachines"}
    return {name for name in found if name.split(".")[0] not in ours}


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def providers(module: str) -> Iterator[str]:
    """The distributions that have this very module: several share the name `google`."""
    path = module.replace(".", "/")
    for distribution in packages_distributions()[module.split(".")[0]]:
        for file in files(distribution) or ():
            if str(file.with_suffix("")) in (path, f"{path}/__init__"):
                yield distribution


def test_every_import_is_of_a_declared_dependency() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[;]", line)[0] for line in project["dependencies"]}
    for module in imported():
        assert declared & set(providers(module)), module


def test_type_checkers_read_the_package_s_types() -> None:
    assert (resources("talkingmachines") / "py.typed").is_file()
