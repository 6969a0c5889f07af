"""What an installation of the client package brings along."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackagePath, files, packages_distributions
from importlib.resources import files as resources
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "talkingmachines"


# What needs `talkingmachines[cli]`; the client does without.
COMMANDS = {PACKAGE / "cli", PACKAGE / "film.py"}
# What needs `talkingmachines[livekit]`, which is too large for every environment of tests.
LIVEKIT = PACKAGE / "livekit.py"


def imported(source: Path, *, later: bool) -> set[str]:
    """Every module of others that a file imports: at once, or within functions."""
    found: set[str] = set()
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        if (node in tree.body) == later:
            continue
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


@cache
def installed() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def files_of(distribution: str) -> list[PackagePath]:
    return files(distribution) or []


def providers(module: str) -> Iterator[str]:
    """The distributions that have this very module: several share the name `google`."""
    path = module.replace(".", "/")
    for distribution in installed()[module.split(".")[0]]:
        for file in files_of(distribution):
            if str(file.with_suffix("")) in (path, f"{path}/__init__"):
                yield distribution.replace("_", "-")


def declared(*extras: str) -> set[str]:
    """Distributions that an installation with these extras has."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return {re.split(r"[<>=\[;]", line)[0] for line in lines}


def test_every_import_is_of_a_declared_dependency() -> None:
    for source in set(PACKAGE.rglob("*.py")) - {LIVEKIT}:
        commands = any(source == part or part in source.parents for part in COMMANDS)
        at_once = declared("cli") if commands else declared()
        for module in imported(source, later=False):
            assert at_once & set(providers(module)), f"{source}: {module}"
        for module in imported(source, later=True):
            assert declared("cli", "cluster", "gateway") & set(providers(module)), (
                f"{source}: {module}"
            )


def test_type_checkers_read_the_package_s_types() -> None:
    assert (resources("talkingmachines") / "py.typed").is_file()
