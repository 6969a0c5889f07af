"""One rank of a team, as a process of its own: python -m tests.score.rank TASK OUT."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from services.score.attention import sdpa
from services.score.contract import Ended
from services.score.engine import Engine
from services.score.parallel import Leader, Ranks, follow, share_attention
from services.score.worker import Worker
from tests.score import calls, small
from tests.score.calls import Call
from tests.score.test_parallel import LOST, PATIENCE, script


def main(task: str, out: Path) -> None:
    dist.init_process_group("gloo")
    team = Ranks.gather(timeout=LOST if task == "lose" else PATIENCE)
    config = small.config()
    model = small.model(config)
    share_attention(model, sdpa, team)
    worker = Worker(model, rows=1, team=team, capture=None, latent_dtype=torch.float32)
    if team.rank > 0:
        follow(worker, team)
    else:
        leader = Leader(worker, team)
        engine = calls.engine(config, hands=leader)
        if task == "lose":
            lose(engine, out)
        torch.save(script(engine), out)
        leader.dismiss()
    # gloo's threads may still run when an orderly end takes them apart, which aborts the process.
    os._exit(0)


def lose(engine: Engine, out: Path) -> NoReturn:
    """Draw; when told that the other rank is struck, say how long it takes to notice."""
    call = Call(engine.config)
    call.open(engine)
    call.draw(engine)
    print("ready", flush=True)
    assert sys.stdin.readline() == "struck\n"
    began = time.monotonic()
    engine.submit(call.name, call.next())
    outcomes = [*engine.step(), *engine.settle()]
    seconds = time.monotonic() - began
    ended = [
        f"{one.session} {type(one.error).__name__}" for one in outcomes if isinstance(one, Ended)
    ]
    out.write_text("\n".join([str(seconds), *ended, str(engine.health(limit=60))]))
    os._exit(0)  # the group is broken; an orderly end would wait for the lost rank


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
