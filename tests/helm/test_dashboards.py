"""Dashboards are what their code says, show every metric, and ask only for what exists.

That every query returns data is shown where a fleet runs and a Prometheus scrapes it, not here.
"""

from __future__ import annotations

import json
import re
from typing import Any

import promql_parser
import pytest
import yaml

from helm.dashboards.__main__ import BOARDS, FOLDER, render
from helm.dashboards.parts import Board
from services.runtime.metrics import ALL_SETS, Declared
from tests.helm.chart import manifests, of_kind
from tests.helm.test_rules import RULES, rules

VARIABLES = {"$__rate_interval": "5m", "$namespace": "n"}
EXPORTED: dict[str, Declared[Any]] = {
    line.name: line for kind in ALL_SETS for line in kind.declared()
}
TARGET_LABELS = {"namespace", "pod", "le", "job", "instance"}
each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)


def queries(board: Board) -> list[str]:
    found = [query.expr for row in board.rows for panel in row.panels for query in panel.queries]
    for name, value in VARIABLES.items():
        found = [expr.replace(name, value) for expr in found]
    return found


def selectors(node: Any) -> list[Any]:
    """Every selector of series in a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    inner = [
        getattr(node, part, None) for part in ("expr", "lhs", "rhs", "vector_selector", "param")
    ]
    inner += list(getattr(node, "args", None) or [])
    return [found for part in inner if part is not None for found in selectors(part)]


def metric(name: str) -> str:
    return name if name in EXPORTED else re.sub("_(bucket|sum|count)$", "", name)


@each_board
def test_it_is_fresh(board: Board) -> None:
    assert (FOLDER / f"{board.name}.json").read_text() == render(board), "python -m helm.dashboards"


@each_board
def test_its_queries_parse_and_name_what_exists(board: Board) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for expr in queries(board):
        found = selectors(promql_parser.parse(expr))
        assert found, expr
        for selector in found:
            assert selector.name in recorded or metric(selector.name) in EXPORTED, expr


@each_board
def test_counters_are_rated_and_gauges_are_not(board: Board) -> None:
    for expr in queries(board):
        for name in re.findall(r"(?<![\w:])tm_\w+", expr):
            kind = EXPORTED[metric(name)].kind.__name__
            rated = bool(re.search(rf"rate\({name}\b", expr))
            assert rated == (kind in ("Counter", "Histogram")), expr


@each_board
def test_labels_exist(board: Board) -> None:
    for expr in queries(board):
        names = [metric(name) for name in re.findall(r"(?<![\w:])tm_\w+", expr)]
        if names:
            grouped = {
                label.strip()
                for group in re.findall(r"by \(([^)]*)\)", expr)
                for label in group.split(",")
            }
            known = set.intersection(*(set(EXPORTED[name].labels) for name in names))
            assert grouped <= known | TARGET_LABELS, expr


def test_every_metric_is_shown_or_alerted_on() -> None:
    asked = " ".join([*(expr for board in BOARDS for expr in queries(board)), *_rules()])
    used = {metric(name) for name in re.findall(r"(?<![\w:])tm_\w+", asked)}
    assert used == set(EXPORTED)


def _rules() -> list[str]:
    return [
        rule["expr"]
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


@each_board
def test_panels_are_explained(board: Board) -> None:
    panels = [panel for row in board.rows for panel in row.panels]
    assert len({panel.title for panel in panels}) == len(panels)
    assert all(panel.meaning.endswith(".") for panel in panels)
    assert all(1 <= len(row.panels) <= 4 for row in board.rows)


@each_board
def test_the_chart_carries_it(board: Board) -> None:
    found = of_kind(manifests("gpu-fleet"), "ConfigMap")[f"dashboard-{board.name}"]
    (content,) = found["data"].values()
    assert json.loads(content) == json.loads((FOLDER / f"{board.name}.json").read_text())
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
