"""Alerts fire when they should and only then; every metric is real; every alert has its runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.schema import CHART
from services.runtime.metrics import ALL_SETS
from tests.helm.chart import manifests, of_kind

HERE = Path(__file__).parent
RULES = sorted((CHART / "files" / "rules").glob("*.yaml"))
RUNBOOKS = HERE.parents[1] / "docs" / "operate.md"
CASES: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(
    (HERE / "alert_cases.yaml").read_text()
)
_SUFFIX = re.compile(r"_(bucket|sum|count)$")


def groups() -> list[dict[str, Any]]:
    return [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if not found:
        pytest.skip("NOT RUN: no promtool; apt-get install --no-install-recommends prometheus")
    return found


def case(alert: str, name: str) -> dict[str, Any]:
    """One of promtool's test cases: does the alert fire after half an hour?"""
    series = [
        {"series": f"{head}{{namespace='n'{', ' + rest if rest else '}'}", "values": values}
        for key, values in CASES[alert][name].items()
        for head, _, rest in [key.partition("{")]
    ]
    firing = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
    count = int(name == "fires")
    minutes = "32m" if alert == "GatewayDrainsTooLong" else "30m"
    expected = {
        "expr": firing,
        "eval_time": minutes,
        "exp_samples": [{"labels": "{}", "value": count}],
    }
    return {
        "name": f"{alert} {name}",
        "interval": "15s",
        "input_series": series,
        "promql_expr_test": [expected],
    }


def test_every_alert_fires_and_keeps_quiet(promtool: str, tmp_path: Path) -> None:
    assert CASES.keys() == ALERTS.keys()
    tests = {
        "rule_files": [str(file) for file in RULES],
        "evaluation_interval": "1m",
        "tests": [case(alert, name) for alert in CASES for name in ("fires", "quiet")],
    }
    file = tmp_path / "cases.yaml"
    file.write_text(yaml.safe_dump(tests))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_sound(promtool: str) -> None:
    files = [str(file) for file in RULES]
    done = subprocess.run([promtool, "check", "rules", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_name_only_metrics_that_exist() -> None:
    exported = {line.name for kind in ALL_SETS for line in kind.declared()}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        used = set(re.findall(r"[a-z_]+:tm_[a-z0-9_]+:[a-z0-9_]+", rule["expr"]))
        assert used <= recorded
        plain = {_SUFFIX.sub("", name) for name in re.findall(r"(?<![\w:])tm_\w+", rule["expr"])}
        assert plain <= exported


def test_every_recording_is_used() -> None:
    told = (file.read_text() for file in sorted((CHART / "files" / "dashboards").glob("*.json")))
    read = "".join([*told, *(rule["expr"] for rule in rules())])
    for rule in rules():
        assert "record" not in rule or rule["record"] in read, rule["record"]


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_every_alert_has_a_runbook(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["annotations"]["runbook_url"] == f"docs/operate.md#{alert.lower()}"
    assert f"\n### {alert}\n" in RUNBOOKS.read_text()
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_no_runbook_is_left_over() -> None:
    headings = re.findall(r"^### (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert set(headings) == ALERTS.keys()


def test_the_chart_carries_every_group() -> None:
    (found,) = of_kind(manifests("gpu-fleet"), "PrometheusRule").values()
    assert found["spec"]["groups"] == groups()
