"""Habits of this repository, held by tests where a linter has no word for them."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
# Where hardware and ranks must not be mentioned: they are decided once, when a model is loaded.
MODEL_FILES = ["services/score/model.py", "services/vae/decoder.py", "services/vae/encoder.py"]
FOREIGN = re.compile(
    r"/(?:work|root|home)/|\bpypi\.org\b|\bfiles\.pythonhosted\.org\b|localhost:\d+/simple"
)


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    paths = (ROOT / line for line in listed.stdout.splitlines())
    return [path for path in paths if path.is_file()]


def test_no_module_is_a_drawer() -> None:
    assert [path for path in tracked("*.py") if path.stem in DRAWERS] == []


def test_no_path_or_host_of_one_machine() -> None:
    texts = tracked("*.py", "*.md", "*.toml", "*.yaml", "*.txt", "*.json", "*.proto", "Makefile")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in texts
        if path != Path(__file__)
        for match in FOREIGN.finditer(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize("name", [name for name in MODEL_FILES if (ROOT / name).exists()])
def test_models_mention_neither_hardware_nor_ranks(name: str) -> None:
    text = (ROOT / name).read_text()
    assert re.findall(r"\b(?:cuda|rank|world_size|all_to_all)\b", text) == []


def test_every_source_file_says_what_it_owns() -> None:
    silent = [
        path.relative_to(ROOT)
        for path in tracked("*.py")
        if "talkingmachines/v1" not in path.as_posix()
        and path.name != "__init__.py"
        and not path.read_text().lstrip().startswith(('"""', "#!"))
    ]
    assert silent == []
