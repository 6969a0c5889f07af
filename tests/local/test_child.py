"""Processes of the fleet: started again when they die, gone when they should be."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.local.child import Child
from services.local.errors import CannotStart
from services.local.ports import check_free, free_block, free_port

SLEEP = "import time; time.sleep(60)"  # in a process of its own
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"


def python(
    code: str, log: Path, *, only_after: int | None = None, grace_seconds: float = 5.0
) -> Child:
    command = [sys.executable, "-c", code]
    return Child("part", command, log=log, grace_seconds=grace_seconds, only_after=only_after)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def eventually(true: Callable[[], bool]) -> None:
    """Wait until something has come about that nobody would tell us of."""
    async with asyncio.timeout(20):
        found = true()
        while not found:
            await asyncio.sleep(0.02)
            found = true()


async def test_a_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    async with python(SLEEP, tmp_path / "log") as child:
        first = child.pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: child.pid != first)
        second = child.pid
        assert alive(second)
    assert not alive(second)


async def test_one_that_keeps_ending_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    async with python("print('no such thing'); exit(3)", tmp_path / "log") as child:
        with pytest.raises(CannotStart, match=r"code 3(.|\n)*no such thing"):
            async with asyncio.timeout(30):
                await child.failed()


async def test_one_that_must_not_be_started_again_is_not(tmp_path: Path) -> None:
    async with python("exit(4)", tmp_path / "log", only_after=75) as child:
        with pytest.raises(CannotStart, match="code 4"):
            await child.failed()


async def test_one_that_does_not_go_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with python(f"{DEAF}; {SLEEP}", log, grace_seconds=0.2) as child:
        await eventually(lambda: b"up" in log.read_bytes())
    assert not alive(child.pid)


async def test_one_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Also when that is killed, and can end nothing any more."""
    code = f"""
import asyncio, sys
from pathlib import Path
from services.local.child import Child

async def main():
    command = [sys.executable, "-c", {SLEEP!r}]
    async with Child("part", command, log=Path({str(tmp_path / "log")!r}), grace_seconds=5) as it:
        print(it.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert starter.stdout is not None
    pid = int(await starter.stdout.readline())
    starter.kill()
    await starter.wait()
    await eventually(lambda: not alive(pid))


async def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="part cannot be started"):
        async with Child("part", ["no-such-program"], log=tmp_path / "log", grace_seconds=1):
            pass


def test_ports_are_free_or_said_to_be_taken() -> None:
    check_free("127.0.0.1", free_port(), what="it", setting="PORT")
    first = free_block(4)
    for port in range(first, first + 4):
        check_free("127.0.0.1", port, what="it", setting="PORT")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(CannotStart, match=rf"127.0.0.1:{port}: it is taken.*PORT"):
            check_free("127.0.0.1", port, what="it", setting="PORT")
