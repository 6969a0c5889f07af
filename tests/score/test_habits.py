"""The model does not know where it runs, nor with whom."""

import re
from pathlib import Path

import pytest

SCORE = Path(__file__).parents[2] / "services" / "score"
PLACELESS = ("model", "adapters", "passes", "rope", "cache", "denoise", "noise", "stage")


@pytest.mark.parametrize("name", PLACELESS)
def test_no_word_of_devices_or_ranks(name: str) -> None:
    code = (SCORE / f"{name}.py").read_text()
    assert not re.search(r"cuda|world_size|distributed|\.rank\b|get_rank", code)


def test_only_the_engines_front_knows_time() -> None:
    """A worker's result may not depend on when it is asked."""
    for name in (*PLACELESS, "worker", "hearing", "commands", "contract"):
        code = (SCORE / f"{name}.py").read_text()
        assert not re.search(r"^import time|^from time", code, re.MULTILINE)
