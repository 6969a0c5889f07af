"""A load test of a fleet of its own, hurt and judged: the whole of `python -m loadtest`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.fleet import READY_SECONDS, ROOT

pytestmark = pytest.mark.timeout(600)  # a machine that is busy starts a fleet in minutes

# How well it did is no question here: that depends on the machine.
SCENARIO = """
name = "hurt"
about = "A gateway is killed, and lines are held and cut, while two people speak."
seed = 2
farewell_seconds = 60

[[phases]]
name = "all"
seconds = 16
at_once = 2

[[callers]]
name = "speaker"
call_seconds = 60
queue_seconds = 60

[faults]
first_after = 3
every_seconds = 4
last_before = 4
each_of = [
  {do = "kill", part = "gateway"},
  {do = "hold", line = "engines", seconds = 1},
  {do = "cut", line = "redis", seconds = 1},
]

[[objectives]]
measure = "cross_talk"
of = "sum"
at_most = 0

[[objectives]]
measure = "marks_seen"
of = "sum"
at_least = 4

[[objectives]]
measure = "reconnects"
of = "count"
at_least = 1

[[objectives]]
measure = "errors"
of = "count"
at_most = 0

[[objectives]]
measure = "faults_of_ours"
of = "count"
at_most = 0
"""


def test_a_fleet_is_started_hurt_and_judged(tmp_path: Path) -> None:
    file, out = tmp_path / "hurt.toml", tmp_path / "report"
    file.write_text(SCENARIO)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TM_")}
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", str(file), "--out", str(out), "--quiet"],
        cwd=ROOT,
        env=clean | {"TM_LOCAL_READY_SECONDS": f"{READY_SECONDS:g}"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert {
        "gateway killed",
        "line to engines: hold for 1.0 s",
        "line to redis: cut for 1.0 s",
    } <= {fault["what"] for fault in report["faults"]}
    # Every part was weighed, and none of them is left.
    assert {"score", "vae", "gateway", "redis"} <= {name.split()[0] for name in report["memory_mb"]}
    assert not [name for name in report["memory_mb"] if _alive(int(name.split()[1]))]


def _alive(pid: int) -> bool:
    return "services." in _command(pid) or "ray::" in _command(pid)


def _command(pid: int) -> str:
    file = Path("/proc") / str(pid) / "cmdline"
    return file.read_text() if file.exists() else ""
