"""Several ranks draw what one draws, and a rank that dies or hangs is found out in time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.score.engine import Engine
from tests.score import calls, small
from tests.score.calls import Call

ROOT = Path(__file__).parents[2]
TIMEOUT = 4.0  # seconds within which a lost rank must be noticed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch(ranks: int, task: str, out: Path) -> list[subprocess.Popen[bytes]]:
    port = str(free_port())
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {"WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.score.rank", task, str(out)]
    return [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, cwd=ROOT)
        for rank in range(ranks)
    ]


def script(engine: Engine) -> Tensor:
    """Cached streaming, attach and rewind in one: [chunks, C, F, h, w]."""
    config = engine.config
    call = Call(config, faces=2)
    call.open(engine)
    drawn = [call.draw(engine, 3)]
    engine.close(call.name)
    call.open(engine)
    drawn.append(call.draw(engine, 2))
    del call.log[3:]
    call.turn = 1
    engine.rewind(call.name, turn=1, tail=call.tail(engine))
    return torch.cat([*drawn, call.draw(engine, 2)])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_draw_what_one_draws(ranks: int, tmp_path: Path) -> None:
    processes = launch(ranks, "draw", tmp_path / "drawn.pt")
    assert [process.wait(timeout=100) for process in processes] == [0] * ranks
    alone = script(calls.engine(small.config()))
    together = torch.load(tmp_path / "drawn.pt")
    assert alone.std() > 0.1
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
def test_a_lost_rank_is_found_out_in_time(blow: signal.Signals, tmp_path: Path) -> None:
    ready, verdict = tmp_path / "ready", tmp_path / "verdict"
    leader, follower = launch(2, "lose", tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert time.monotonic() < deadline
            assert leader.poll() is None
            os.sched_yield()
        os.kill(follower.pid, blow)
        (tmp_path / "struck").touch()
        assert leader.wait(timeout=60) == 0
    finally:
        for process in (leader, follower):
            process.kill()
            process.wait()
    seconds, ended, health = verdict.read_text().split("\n")
    assert float(seconds) < 2 * TIMEOUT
    assert ended == "call RankLost"
    assert health != "None"
