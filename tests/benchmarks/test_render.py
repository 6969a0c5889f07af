"""What pages show is what results say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bench import RUNS, compared, lines
from benchmarks.record import Figure, read
from benchmarks.render import PAGES, README, ROOT, readme, rendered


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_fresh(page: str) -> None:
    assert rendered(page) == (ROOT / page).read_text(), "run: python -m benchmarks.render"


def test_every_figure_of_the_readme_exists() -> None:
    for row in README:
        result = read(row.benchmark)
        assert result is not None, row.benchmark
        assert row.figure in result.figures, row


def test_the_readme_follows_the_results(tmp_path: Path) -> None:
    result = read("gateway")
    assert result is not None
    changed = replace(result, figures={"sessions per core": Figure(123.4, "sessions", "more")})
    changed.write(tmp_path)
    (row,) = [line for line in readme(tmp_path).splitlines() if "sessions" in line]
    assert "| 123 sessions | `python -m benchmarks.gateway` |" in row


def test_a_worse_figure_is_shown_first_and_marked() -> None:
    result = read("gateway")
    assert result is not None
    name = "sessions per core"
    fewer = replace(result.figures[name], value=result.figures[name].value / 2)
    worse = replace(result, figures={**result.figures, name: fewer})
    first, *others = lines(list(compared([result, result], [worse, result])))
    assert first.split()[0] == "2.00"
    assert first.endswith("gateway: sessions per core  <-- worse")
    assert len(others) == len(result.figures) - 1
    assert not any("worse" in line for line in others)


def test_all_of_it_fits_a_quarter_of_an_hour_at_half_its_limits() -> None:
    assert sum(run.seconds for run in RUNS.values()) / 2 <= 15 * 60
    for run in RUNS.values():
        assert (ROOT / "benchmarks" / f"{run.command.split()[0]}.py").exists()
