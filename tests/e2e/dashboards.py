"""Every query of every panel returns data from a real Prometheus that scraped the real fleet.

The fleet is the one of the other tests, under a short load; a real bridge stands beside it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helm.dashboards.__main__ import BOARDS
from helm.dashboards.asking import Window
from helm.dashboards.preview import drawn
from services.local.ports import free_port
from talkingmachines.client import Client
from talkingmachines.picture import VideoFrame
from tests.e2e.fleet import ROOT, RunningFleet
from tests.e2e.model import CHARACTERS
from tests.e2e.prometheus import NAMESPACE, PROGRAM, prometheus
from tests.e2e.test_fleet import tone

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        PROGRAM is None,
        reason="NOT RUN: no prometheus; apt-get install --no-install-recommends prometheus",
    ),
]

# What a short load on one machine cannot bring about → panels with a query that it leaves empty.
ABSENT = {"no speech model answers here": {"Answer", "Answer by stage"}}


async def load(client: Client) -> None:
    """A character that is made, and two calls at once, one of them interrupted."""
    made = await client.avatars.create(ROOT / "models/tiny/avatars/ada.png", "Cleo")
    await client.avatars.delete(made.avatar_id)

    async def call(avatar: str, *, interrupt: bool) -> None:
        async with client.talk(avatar, seed=1) as session:
            session.say(tone(4.0))
            async for item in session:
                if isinstance(item, VideoFrame) and item.frame == 30:
                    if interrupt:
                        session.interrupt()
                        session.say(tone(1.0))
                    session.hang_up()

    await asyncio.gather(call(CHARACTERS[0], interrupt=True), call(CHARACTERS[1], interrupt=False))


@contextmanager
def bridge(port: int) -> Iterator[None]:
    """A bridge whose speech model is away, as operators have seen it."""
    told = {
        "LISTEN__PORT": "0",
        "ENDPOINT__PORT": str(port),
        "REALTIME__URL": "ws://127.0.0.1:1/v1/realtime?model=none",
    }
    environment = os.environ | {f"TM_BRIDGE_{name}": value for name, value in told.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "services.llm_bridge"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


async def test_every_panel_shows_something(running: RunningFleet, tmp_path: Path) -> None:
    port = free_port()
    # Ports without a replica behind them are targets that are down, as after a scale-down.
    targets = {**running.addresses.metrics, "bridge": [f"127.0.0.1:{port}"]}
    with bridge(port), prometheus(tmp_path, targets) as address:
        async with running.client() as client:
            await load(client)
        window = Window(address, NAMESPACE, seconds=120, step=1, rate=60)
        expected, empty = set[str]().union(*ABSENT.values()), set[str]()
        for _ in range(60):  # until the last scrapes are in
            empty = await asyncio.to_thread(silent, window)
            if empty == expected:
                break
            await asyncio.sleep(1)
        assert empty == expected
        for board in BOARDS:
            picture = await asyncio.to_thread(drawn, board, window)
            assert len(picture.getcolors(1 << 20) or ()) > 10, "curves in colours"


def silent(window: Window) -> set[str]:
    """Panels with a query that returned nothing."""
    return {
        panel.title
        for board in BOARDS
        for row in board.rows
        for panel in row.panels
        if not all(window.lines(query) for query in panel.queries)
    }
