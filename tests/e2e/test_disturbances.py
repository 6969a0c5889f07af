"""Whatever dies in the middle of speech: afterwards the stream is what it would have been.

A fleet of real processes with two replicas of each engine, where nobody stays attached for more
than two seconds. What it should give is recorded beforehand with the same model in one process. How
long the picture was held is printed (`pytest -s`), not judged: that depends on the machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from talkingmachines.errors import QuotaExceeded, Unavailable
from talkingmachines.v1 import avatar_pb2
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceStub
from tests.e2e.calls import (
    DRIVE,
    PATIENCE,
    RATE,
    RAW,
    Caller,
    Seen,
    check_apart,
    check_same,
    heard_out,
    resumed,
    taken,
)
from tests.e2e.fleet import RunningFleet, fleet
from tests.e2e.model import write_model
from tests.e2e.quiet import quiet
from tests.gateway.fleet import Talk, eventually

pytestmark = pytest.mark.timeout(600)  # a machine that is busy starts a fleet in minutes

FOUR = [Caller(number) for number in range(4)]
TWO = FOUR[:2]
_ENGINE = {
    "replicas": {"least": 2, "most": 2},
    "dtype": "float32",
    "sessions": 8,
    "terms": {"max_age_seconds": 2.0, "headroom": 4},
}


@pytest.fixture(scope="module")
def restless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    folder = tmp_path_factory.mktemp("restless")
    # Replicas take their time to come back where other programs have the machine.
    patience = {"PATIENCE__REBUILD": f"{PATIENCE:g}", "PATIENCE__OPEN": f"{PATIENCE:g}"}
    limits = {"SESSION__IDLE_SECONDS": "20", "SESSION__MESSAGES_PER_SECOND": "600"}
    room = {"ROOM__SECONDS": "2", "RESUME_SECONDS": f"{PATIENCE:g}"}
    gateway = patience | limits | room
    engines: dict[str, Any] = {"SCORE": _ENGINE, "VAE": _ENGINE}
    engines |= {"SESSIONS": "8", "CONVERSE": "false"}
    with fleet(folder, gateway=gateway, **engines) as one:
        yield one


@asynccontextmanager
async def stub_of(on: RunningFleet) -> AsyncIterator[Any]:
    async with open_channel(Peer(address=on.addresses.address)) as channel:
        yield AvatarServiceStub(channel)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Seen]:
    """What each caller gets when nothing happens and nobody else calls."""
    folder = tmp_path_factory.mktemp("quiet")

    async def recorded() -> dict[int, Seen]:
        found = {}
        async with quiet(write_model(folder / "model"), folder / "blobs") as stub:
            for caller in FOUR:
                (found[caller.number],) = await heard_out([await caller.call(stub)])
        return found

    found = asyncio.run(recorded())
    for caller in FOUR:
        assert found[caller.number].heard.startswith(caller.speech.samples)
    check_apart(found)
    return found


def told(what: str, got: list[Seen]) -> None:
    held = ", ".join(f"{seen.held:.2f} s" for seen in got)
    moves = sum(seen.hand_overs for seen in got)
    print(f"{what}: held {held}; {moves} hand-overs, {sum(seen.rebuilds for seen in got)} rebuilds")


async def spoken_to(frame: int, talks: list[Talk]) -> None:
    """Wait until every caller has seen a frame."""
    for talk in talks:
        await talk.until(lambda on: on.frames and on.frames[-1].frame >= frame, PATIENCE)


@pytest.mark.parametrize("callers", [TWO, FOUR], ids=["two", "four"])
async def test_callers_at_once_never_exchange_a_byte_and_dozens_of_hand_overs_change_nothing(
    callers: list[Caller], restless: RunningFleet, alone: dict[int, Seen]
) -> None:
    async with stub_of(restless) as stub:
        got = await heard_out([await caller.call(stub) for caller in callers])
    told("hand-overs", got)
    check_same(callers, got, alone)
    assert sum(seen.hand_overs for seen in got) >= 2 * len(callers)
    assert sum(seen.rebuilds for seen in got) == 0


@pytest.mark.parametrize(
    "victim",
    ["ray::ServeReplica:score", "ray::ServeReplica:vae", "ray::ProxyActor", "valkey-server"],
)
async def test_a_process_killed_in_the_middle_of_speech_changes_nothing(
    victim: str, restless: RunningFleet, alone: dict[int, Seen]
) -> None:
    before = len(restless.processes(victim))
    async with stub_of(restless) as stub:
        talks = [await caller.call(stub) for caller in TWO]
        await spoken_to(30, talks)
        for pid in restless.processes(victim):
            os.kill(pid, signal.SIGKILL)
            if await _noticed(talks):
                break  # else nobody was attached to that one
        got = await heard_out(talks)
        await taken(TWO[0], stub)
    told(f"SIGKILL of {victim}", got)
    check_same(TWO, got, alone)
    if victim != "valkey-server":
        assert sum(seen.rebuilds for seen in got) >= 1
    await eventually(lambda: len(restless.processes(victim)) == before, PATIENCE)


async def _noticed(talks: list[Talk]) -> bool:
    """Whether a call lost an attachment within two seconds."""
    with suppress(TimeoutError):
        await eventually(
            lambda: any(talk.told("statistics")[-1].rebuilds for talk in talks), seconds=2
        )
        return True
    return False


async def test_a_gateway_killed_in_the_middle_of_speech_loses_no_call(
    restless: RunningFleet, alone: dict[int, Seen]
) -> None:
    async with stub_of(restless) as stub:
        talks = [await caller.call(stub) for caller in TWO]
        await spoken_to(30, talks)
        restless.kill("services.gateway")
        for talk in talks:
            await talk.over(PATIENCE)
            assert isinstance(talk.error, Unavailable)
        again = [await resumed(talk, stub) for talk in talks]
        for caller, call in zip(TWO, again, strict=True):
            positions = call.told("ready")[0].speech
            start = positions[0].sample if positions else 0
            call.say(caller.speech.part(start, len(caller.speech)))
            call.hang_up()
        got = [Seen() for _ in TWO]
        for seen, talk, call in zip(got, talks, again, strict=True):
            await call.over(PATIENCE)
            assert call.error is None
            seen.take(talk, before=call.frames[0].frame)
            seen.take(call)
    told("SIGKILL of the gateway", got)
    check_same(TWO, got, alone)


async def test_interrupting_stops_speech_at_once_and_the_face_does_not_jump(
    restless: RunningFleet, alone: dict[int, Seen]
) -> None:
    caller = FOUR[0]
    async with stub_of(restless) as stub:
        talk = await caller.call(stub)
        await spoken_to(40, [talk])
        talk.send(interrupt=avatar_pb2.Interrupt())
        await talk.until(lambda on: on.told("interrupted"), PATIENCE)
        (cut,) = talk.told("interrupted")
        await talk.until(lambda on: on.frames[-1].frame >= cut.frame + 50, PATIENCE)
        talk.hang_up()
        await talk.over(PATIENCE)
    assert talk.error is None
    after = [pcm for pcm in talk.sounds if pcm.turn > cut.turn]
    assert after[0].first_sample == cut.sample
    assert not any(b"".join(pcm.samples for pcm in after))
    shown: dict[int, Any] = {}
    for frame in talk.frames:  # what came later in the place of another is what is shown
        shown[frame.frame] = np.frombuffer(frame.picture.pixels, np.uint8).astype(float)  # type: ignore[union-attr]
    usual = _steps(alone[caller.number].frames)
    chunk = talk.told("ready")[0].spec
    size = chunk.latents_per_chunk * chunk.frames_per_latent
    near = {n: shown[n] for n in range(cut.frame - 2, cut.frame + 2 * size)}
    jump = max(_steps(near))
    print(
        f"interrupted at {cut.sample / RATE:.2f} s: step {jump:.2f}, undisturbed {max(usual):.2f}"
    )
    assert jump <= 1.5 * max(usual)


def _steps(frames: dict[int, Any]) -> list[float]:
    """Mean difference from each frame to the next, in grey levels."""
    pairs = pairwise(sorted(frames))
    return [float(np.abs(frames[b].astype(float) - frames[a]).mean()) for a, b in pairs]


async def test_speech_of_unknown_length_in_real_time_is_said_whole(restless: RunningFleet) -> None:
    """Pieces of 20 ms as they are synthesised, and nobody says that they end."""
    speech = FOUR[0].speech.part(0, 2 * RATE)
    async with stub_of(restless) as stub:
        talk = Talk().start(stub, avatar_id=await FOUR[0].avatar(stub), mode=DRIVE, video=RAW)
        await talk.ready(PATIENCE)
        for start in range(0, len(speech), RATE // 50):
            talk.say(speech.part(start, start + RATE // 50), end=False)
            await asyncio.sleep(0.02)
        await talk.until(lambda on: on.told("turn_ended"), PATIENCE)
        (got,) = await heard_out([talk])
    assert _without_pauses(got.heard) == _without_pauses(speech.samples)
    assert list(got.frames) == list(range(len(got.frames)))


def _without_pauses(samples: bytes) -> bytes:
    """Speech without the silence between pieces that came late."""
    sound = np.frombuffer(samples, np.int16)
    return bytes(sound[sound != 0].tobytes())


@pytest.mark.parametrize("way", ["vanish", "never read", "flood"])
async def test_a_client_that_misbehaves_ends_alone_and_frees_its_slots(
    way: str, restless: RunningFleet, alone: dict[int, Seen]
) -> None:
    good, bad = FOUR[0], FOUR[1]
    async with stub_of(restless) as stub, stub_of(restless) as other:
        talk = await good.call(stub)
        await spoken_to(10, [talk])
        misfit = await bad.call(other)
        await spoken_to(10, [misfit])
        _misbehave[way](misfit)
        got = await heard_out([talk])
        if way == "flood":
            await misfit.over(PATIENCE)
            assert isinstance(misfit.error, QuotaExceeded)
        await eventually(partial(_idle, restless), PATIENCE)
        misfit.vanish()
    check_same([good], got, alone)


def _flood(talk: Talk) -> None:
    for _ in range(3_000):
        talk.send(playback=avatar_pb2.PlaybackPosition())


_misbehave: dict[str, Callable[[Talk], Any]] = {
    "vanish": lambda talk: talk.vanish(),
    "never read": lambda talk: talk._reading.cancel(),
    "flood": _flood,
}


async def _idle(on: RunningFleet) -> bool:
    """Whether the gateway holds no session and no attachment."""
    names = ("tm_attachments{", "tm_leases ")
    lines = (await asyncio.to_thread(_metrics, on)).splitlines()
    return not sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def _metrics(on: RunningFleet) -> str:
    (address,) = on.addresses.metrics["gateway"]
    with urlopen(f"http://{address}/metrics", timeout=30) as page:
        return str(page.read().decode())
