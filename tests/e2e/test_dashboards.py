"""Every query of every panel returns data from a real Prometheus that scraped the real fleet.

The fleet is the one of the other tests, under a short load that has everything in it which a panel
shows: a conversation from a browser, callers who wait and who are turned away, a picture that is
held because an engine hangs.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from helm.dashboards.__main__ import BOARDS
from helm.dashboards.asking import Window
from helm.dashboards.parts import Query
from helm.dashboards.preview import drawn
from talkingmachines.client import Client
from talkingmachines.errors import NoCapacity
from talkingmachines.picture import VideoFrame
from talkingmachines.speech import read_file
from tests.e2e.calls import PATIENCE
from tests.e2e.fleet import ROOT, RunningFleet
from tests.e2e.model import CHARACTERS
from tests.e2e.prometheus import NAMESPACE, PROGRAM, prometheus
from tests.e2e.test_fleet import tone
from tests.gateway.browser import MICROPHONE_RATE, Browser

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        PROGRAM is None,
        reason="NOT RUN: no prometheus; apt-get install --no-install-recommends prometheus",
    ),
]

QUESTION = read_file(ROOT / "tests" / "llm_bridge" / "clips" / "question.ogg")
_HUNG_SECONDS = 1.5  # more than is drawn ahead, less than makes Serve start another replica


async def test_every_panel_shows_something(running: RunningFleet, tmp_path: Path) -> None:
    # Ports without a replica behind them are targets that are down, as after a scale-down.
    with prometheus(tmp_path, running.addresses.metrics) as address:
        window = Window(address, NAMESPACE, seconds=120, step=1, rate=60)
        # It looks for its targets seconds after it is ready; what happens before is not counted.
        await until(lambda: scraped(window) == {"gateway", "bridge", "score", "vae"})
        async with running.client() as client:
            await load(running, client)
        empty = set[tuple[str, str]]()
        for _ in range(20):  # until the last scrapes are in
            empty = await asyncio.to_thread(silent, window)
            if not empty:
                break
            await asyncio.sleep(1)
        assert not empty
        for board in BOARDS:
            picture = await asyncio.to_thread(drawn, board, window)
            assert len(picture.getcolors(1 << 20) or ()) > 10, "curves in colours"


async def load(running: RunningFleet, client: Client) -> None:
    """As much as two places can hold, and somewhat more."""
    made = await client.avatars.create(ROOT / "models/tiny/avatars/ada.png", "Cleo")
    await client.avatars.delete(made.avatar_id)
    async with asyncio.TaskGroup() as group:
        group.create_task(conversation(running))
        group.create_task(call(client, wait=PATIENCE, interrupt=True))
    begun = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(3):  # engines on a busy machine take one session, else two
            group.create_task(call(client, wait=PATIENCE, begun=begun))
        await begun.wait()
        with pytest.raises(NoCapacity):
            await call(client)
        await hang(running, "ServeReplica:vae")


async def call(
    client: Client,
    *,
    interrupt: bool = False,
    wait: float = 0.0,
    begun: asyncio.Event | None = None,
) -> None:
    """Three seconds of a call, at once or after a wait."""
    async with client.talk(CHARACTERS[0], seed=1, max_queue_seconds=wait) as session:
        session.say(tone(4.0))
        async for item in session:
            if isinstance(item, VideoFrame) and begun is not None:
                begun.set()
            if isinstance(item, VideoFrame) and item.frame == 75:
                if interrupt:
                    session.interrupt()
                    session.say(tone(1.0))
                session.hang_up()


async def conversation(running: RunningFleet) -> None:
    """A browser that asks, hears the answer and hangs up."""
    browser = await Browser(running.addresses.page.rstrip("/")).dial(
        avatar=CHARACTERS[1], max_queue_seconds=PATIENCE
    )
    try:
        await browser.hears(lambda it: it.all("ready"), PATIENCE)
        assert browser.voice is not None
        assert QUESTION.sample_rate == MICROPHONE_RATE
        browser.voice.say(QUESTION.array())
        await browser.hears(lambda it: it.all("turn_ended"), PATIENCE)
        browser.send("hang_up")
        await browser.hears(lambda it: it.all("ended"), PATIENCE)
    finally:
        await browser.close()


async def hang(running: RunningFleet, name: str) -> None:
    """Its process does nothing for a while, as when a device does not answer."""
    (replica,) = running.processes(name)
    os.kill(replica, signal.SIGSTOP)
    try:
        await asyncio.sleep(_HUNG_SECONDS)
    finally:
        os.kill(replica, signal.SIGCONT)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.5)


def scraped(window: Window) -> set[str]:
    """Services of which at least one process was asked."""
    return {line.name for line in window.lines(Query("sum by (job) (up) > 0", "{{job}}"))}


def silent(window: Window) -> set[tuple[str, str]]:
    """Panels and their queries that returned nothing."""
    return {
        (panel.title, query.expr)
        for board in BOARDS
        for row in board.rows
        for panel in row.panels
        for query in panel.queries
        if not window.lines(query)
    }
