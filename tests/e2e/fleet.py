"""The real fleet for tests: real Ray, both engines, gateway and Redis as processes of their own.

One fleet for the whole session of tests, small and random; what a test kills comes back.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadtest.processes import descendants
from talkingmachines.client import Client
from talkingmachines.local import Addresses
from tests.e2e.model import write_model

ROOT = Path(__file__).resolve().parents[2]

# Minutes on a machine that is busy with other things; about ten seconds on one that is not.
READY_SECONDS = 400.0
_STOP_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class RunningFleet:
    """A fleet that serves, seen from outside."""

    addresses: Addresses
    data: Path
    process: subprocess.Popen[bytes]

    def client(self) -> Client:
        return Client(self.addresses.address)

    def processes(self, name: str = "") -> dict[int, str]:
        """Command lines of all its processes that contain `name`, by process id."""
        found = descendants(self.process.pid)
        return {pid: line for pid, line in found.items() if name in line}

    def kill(self, name: str) -> int:
        """SIGKILL the first process whose command line contains `name`; returns its id."""
        pid = min(self.processes(name))
        os.kill(pid, signal.SIGKILL)
        return pid


@contextmanager
def fleet(
    folder: Path,
    *,
    gateway: Mapping[str, str] | None = None,
    bridge: Mapping[str, str] | None = None,
    **variables: Any,
) -> Iterator[RunningFleet]:
    """A fleet of its own, ended as Ctrl-C does; nothing may be left of it.

    Args:
        folder: empty; gets the model and the data.
        gateway: settings of the gateway by the names of `TM_GATEWAY_*`.
        bridge: settings of the bridge by the names of `TM_BRIDGE_*`.
        variables: further settings by the names of `TM_LOCAL_*`; JSON where they are no text.
    """
    model = write_model(folder / "model")
    data = folder / "data"
    given = {"MODEL": str(model), "DATA": str(data), "PORT": "0"} | variables
    process = start(given, gateway=gateway or {}, bridge=bridge or {})
    seen: dict[int, str] = {}
    try:
        yield RunningFleet(_ready(process, data), data, process)
    finally:
        seen = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    left = _left_of(seen, seconds=10.0)
    assert not left, f"the fleet left processes: {left}"


def start(
    variables: Mapping[str, Any],
    *,
    gateway: Mapping[str, str] = MappingProxyType({}),
    bridge: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    told = {f"TM_GATEWAY_{name}": value for name, value in gateway.items()}
    told |= {f"TM_BRIDGE_{name}": value for name, value in bridge.items()}
    told |= {
        f"TM_LOCAL_{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in {"READY_SECONDS": READY_SECONDS, **variables}.items()
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TM_")}
    return subprocess.Popen(
        [sys.executable, "-m", "services.local", "--json"],
        cwd=ROOT,
        env=clean | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _ready(process: subprocess.Popen[bytes], data: Path) -> Addresses:
    assert process.stdout is not None
    assert process.stderr is not None
    while select.select([process.stdout], [], [], READY_SECONDS + 10)[0]:
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.stderr.read().decode())
        if b'"ready"' in line:
            return Addresses.from_json(line.decode())
    logs = {log.name: log.read_text()[-2000:] for log in (data / "logs").iterdir()}
    raise AssertionError(f"the fleet is not ready: {logs}")


def _left_of(seen: dict[int, str], *, seconds: float) -> dict[int, str]:
    """Those that are still there when they have had time to go."""
    end = time.monotonic() + seconds
    while (left := _alive(seen)) and time.monotonic() < end:
        select.select([], [], [], 0.2)
    return left


def _alive(seen: dict[int, str]) -> dict[int, str]:
    return {pid: line for pid, line in seen.items() if descendants(pid).get(pid) == line}
