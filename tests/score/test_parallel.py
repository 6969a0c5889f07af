"""Several ranks draw what one draws, and a rank that dies or hangs is found out in time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.score.engine import Engine
from tests.score import calls, small
from tests.score.calls import Call

ROOT = Path(__file__).parents[2]
LOST = 8.0  # seconds after which a rank is taken for lost, where one will be
PATIENCE = 300.0  # where none is: other work may keep a rank from its turn for long


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def launched(ranks: int, task: str, out: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of a team; none is left behind, whatever happens."""
    port = str(free_port())
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {"WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.score.rank", task, str(out)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank)}, cwd=ROOT, stdin=pipe, stdout=pipe
        )
        for rank in range(ranks)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


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


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_draw_what_one_draws(ranks: int, tmp_path: Path) -> None:
    with launched(ranks, "draw", tmp_path / "drawn.pt") as processes:
        assert [process.wait(PATIENCE) for process in processes] == [0] * ranks
    alone = script(calls.engine(small.config()))
    together = torch.load(tmp_path / "drawn.pt")
    assert alone.std() > 0.1
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
def test_a_lost_rank_is_found_out_in_time(blow: signal.Signals, tmp_path: Path) -> None:
    with launched(2, "lose", tmp_path / "verdict") as (leader, follower):
        assert leader.stdout is not None
        assert leader.stdin is not None
        assert b"ready\n" in iter(leader.stdout.readline, b"")
        os.kill(follower.pid, blow)
        leader.stdin.write(b"struck\n")
        leader.stdin.flush()
        assert leader.wait(PATIENCE) == 0
    seconds, ended, health = (tmp_path / "verdict").read_text().split("\n")
    assert float(seconds) < 2 * LOST
    assert ended == "call RankLost"
    assert health != "None"
