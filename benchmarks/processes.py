"""Services as processes of their own, and what the kernel says of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_TICKS = os.sysconf("SC_CLK_TCK")
_START_SECONDS, _STOP_SECONDS = 90.0, 30.0

# A service under a profiler that counts processor time of the loop's thread, not other programs'.
_PROFILED = """
import cProfile, runpy, sys, time
profile, out, name = cProfile.Profile(time.thread_time), *sys.argv[1:]
sys.argv = [name]
try:
    profile.runcall(runpy.run_module, name, run_name="__main__")
finally:
    profile.dump_stats(out)
"""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that runs."""

    pid: int
    start_seconds: float  # until it served

    @property
    def processor_seconds(self) -> float:
        return _processor_seconds(Path(f"/proc/{self.pid}/stat"))

    @property
    def loop_seconds(self) -> float:
        """Processor time of its main thread, which the event loop has."""
        return _processor_seconds(Path(f"/proc/{self.pid}/task/{self.pid}/stat"))

    @property
    def thread_seconds(self) -> dict[int, float]:
        """Processor time of every thread."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return {int(task.name): _processor_seconds(task / "stat") for task in tasks}

    @property
    def bytes(self) -> int:
        """Of memory that is really there."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def _processor_seconds(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@asynccontextmanager
async def service(
    name: str,
    settings: Mapping[str, str],
    *,
    core: int | None = None,
    profile: Path | None = None,
) -> AsyncIterator[tuple[Process, str]]:
    """`services.NAME` and the address at which it serves.

    Args:
        settings: its environment, without the prefix `TM_NAME_`.
        core: the only one that it may use; not given: all.
        profile: where what it spent its time on is written at the end.
    """
    module, prefix = f"services.{name}", f"TM_{name.upper()}_"
    given = {"LISTEN__PORT": "0", "LISTEN__NOTICE_SECONDS": "0", "LISTEN__DRAIN_SECONDS": "1"}
    environment = {known: value for known, value in os.environ.items() if known[:3] != "TM_"}
    environment |= {f"{prefix}{setting}": value for setting, value in {**given, **settings}.items()}
    program = ["-c", _PROFILED, str(profile), module] if profile else ["-m", module]
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *pinned, sys.executable, *program, env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_START_SECONDS):
            port = await _port(name, process.stderr)
        draining = asyncio.create_task(_drain(process.stderr))
        yield Process(process.pid, time.monotonic() - began), f"127.0.0.1:{port}"
        draining.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()


@asynccontextmanager
async def gateway(
    score: str,
    vae: str,
    redis: int,
    folder: Path,
    *,
    settings: Mapping[str, str] = MappingProxyType({}),
    profile: Path | None = None,
) -> AsyncIterator[tuple[Process, str]]:
    """A gateway between engines at these addresses and the Redis of this port."""
    joined = {
        "SCORE__ADDRESS": score,
        "VAE__ADDRESS": vae,
        "REDIS__URL": f"redis://127.0.0.1:{redis}",
        "BLOBS_URL": folder.as_uri(),
        "LIMITS__SESSIONS": "100000",
    }
    async with service("gateway", {**joined, **settings}, profile=profile) as running:
        yield running


async def _port(name: str, lines: asyncio.StreamReader) -> int:
    said = b""
    async for said in lines:
        if said.startswith(b"{") and (told := json.loads(said))["event"] == "serving":
            return int(told["port"])
    raise RuntimeError(f"{name} ended before it served: {said.decode().strip()}")


async def _drain(lines: asyncio.StreamReader) -> None:
    """Read on, so that it can go on writing; show what should not have happened."""
    async for line in lines:
        if b'"level": "warning"' in line or b'"level": "error"' in line:
            print(line.decode().strip(), file=sys.stderr)
