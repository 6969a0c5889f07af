"""A real Prometheus that scrapes a fleet of this machine, with the chart's recording rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from select import select
from urllib.error import URLError
from urllib.request import urlopen

from helm.schema import CHART
from services.local.ports import free_port

NAMESPACE = "local"
PROGRAM = shutil.which("prometheus")
_READY_SECONDS = 60.0


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Scrapes every second, while entered; its address.

    Args:
        folder: empty; for configuration and data.
        targets: host:port of metrics by the job that they belong to.
    """
    assert PROGRAM is not None
    port, configuration = free_port(), folder / "prometheus.json"  # JSON is YAML as well
    configuration.write_text(json.dumps(_configuration(targets)))
    command = [PROGRAM, f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}/-/ready", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _configuration(targets: Mapping[str, Sequence[str]]) -> object:
    rules = [str(file) for file in sorted((CHART / "files" / "rules").glob("*.yaml"))]
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": rules,
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [address], "labels": {"namespace": NAMESPACE, "pod": address}}
                    for address in addresses
                ],
            }
            for job, addresses in targets.items()
        ],
    }


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            select([], [], [], 0.1)
    raise AssertionError("Prometheus does not start")
