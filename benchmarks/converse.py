"""From the end of the user's speech to the first frame of the answer, with the whole fleet beside:
python -m benchmarks.converse

The real fleet on this machine with its defaults, the one that runs or one of its own: local Ray,
the small model, the bridge offline. A synthetic user asks in real time, over gRPC; what is counted
is what its client sees. Where the time goes: the bridge's and the gateway's own histograms.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from statistics import median
from time import monotonic
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.bridge import QUESTIONS
from benchmarks.record import Figure, record
from services.llm_bridge.local.hibari import RATE, open_hibari
from services.runtime.device import DeviceThread
from talkingmachines.cli.server import own_fleet
from talkingmachines.client import Client
from talkingmachines.local import data_folder, running_fleet
from talkingmachines.media import Pcm
from talkingmachines.picture import VideoFrame
from talkingmachines.session import Session
from talkingmachines.speech import live
from talkingmachines.v1 import avatar_pb2

_QUIET = 300  # of 32,768: below is silence
_WANTED = {"tm_speech_stage_seconds", "tm_chunk_seconds"}
PERSONA = avatar_pb2.Persona(
    instructions="You are Ada, a retired lighthouse keeper. You love storms and old maps."
)


async def main() -> None:
    questions = await spoken()
    running = running_fleet(data_folder())
    fleet = nullcontext(running) if running else own_fleet(converse=True)
    async with fleet as addresses, Client(addresses.address) as client:
        places = [place for kind in ("bridge", "gateway") for place in addresses.metrics[kind]]
        before = await counted(places)
        mode = avatar_pb2.TALK_MODE_CONVERSE
        async with client.talk("ada", mode=mode, persona=PERSONA) as session:
            listening = Listener(session)
            waits = [await asked(session, listening, question) for question in questions]
            statistics = session.statistics
        after = await counted(places)
    stages = {
        name: round((total - before[name][0]) / max(1, count - before[name][1]), 3)
        for name, (total, count) in after.items()
    }
    results = {
        "first_frame_seconds": {"each": waits, "median": median(waits), "most": max(waits)},
        "holds": statistics.holds,
        "mean_stage_seconds": stages,
    }
    figures = {
        "first frame of the answer, median": Figure(round(median(waits), 3), "s"),
        "first frame of the answer, most": Figure(round(max(waits), 3), "s"),
    }
    record("converse-cpu", figures, results)
    print(results)


async def spoken() -> list[Pcm]:
    """The questions as a microphone would give them, ending with the last of the voice."""
    thread = DeviceThread("synthesis", waiting=2)
    voice = await open_hibari(thread, threads=1)
    sounds = [await voice.speak(text, "heron") for text in QUESTIONS]
    await thread.close(within=10)
    return [Pcm(sound[: 2 * _last_voice(sound)], RATE) for sound in sounds]


def _last_voice(sound: bytes) -> int:
    return int(np.flatnonzero(np.abs(np.frombuffer(sound, "<i2")) > _QUIET)[-1])


class Listener:
    """Reads all that comes, and knows when the first frame of each turn came."""

    def __init__(self, session: Session) -> None:
        self.answered: dict[int, float] = {}
        self.ended: set[int] = set()
        self._session = session
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def until(self, turn: int) -> None:
        """Wait until a turn is over."""
        while turn not in self.ended:
            self._changed.clear()
            async with asyncio.timeout(120):
                await self._changed.wait()

    async def _read(self) -> None:
        turn = 0
        async for item in self._session:
            match item:
                case avatar_pb2.TurnStarted(turn=turn):
                    pass
                case VideoFrame(turn=shown) if turn and shown == turn:
                    self.answered.setdefault(turn, monotonic())
                case avatar_pb2.TurnEnded(turn=over):
                    self.ended.add(over)
                    self._changed.set()


async def asked(session: Session, listener: Listener, question: Pcm) -> float:
    """Seconds from the last voice to the first frame of the answer."""
    ends = monotonic() + question.seconds
    microphone = session.say(live(question))
    turn = len(listener.ended) + 1
    await listener.until(turn)
    microphone.cancel()
    return round(listener.answered[turn] - ends, 3)


async def counted(places: list[str]) -> dict[str, tuple[float, float]]:
    """Sum and count of each histogram, by stage."""
    found: dict[str, tuple[float, float]] = {}
    for place in places:
        for family in text_string_to_metric_families(await page(place)):
            if family.name in _WANTED:
                for stage in {sample.labels["stage"] for sample in family.samples}:
                    found[stage] = _sums(family, stage)
    return found


def _sums(family: Any, stage: str) -> tuple[float, float]:
    values = {
        sample.name.removeprefix(f"{family.name}_"): sample.value
        for sample in family.samples
        if sample.labels["stage"] == stage and not sample.name.endswith("bucket")
    }
    return values["sum"], values["count"]


async def page(place: str) -> str:
    host, _, port = place.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return text.partition("\r\n\r\n")[2]


if __name__ == "__main__":
    asyncio.run(main())
