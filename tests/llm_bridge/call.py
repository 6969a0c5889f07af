"""One conversation as a gateway holds it, within the process or over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from services.llm_bridge.conversation import Conversation
from services.llm_bridge.persona import Manners, Patience, Persona
from services.llm_bridge.speech_model import Greet, Past, SpeechModel
from services.runtime.metrics import BridgeMetrics
from talkingmachines.v1 import avatar_pb2, llm_bridge_pb2, media_pb2

USER_RATE = 16_000


def voice(seconds: float) -> bytes:
    """Loud noise at `USER_RATE`: voice to whoever hears by energy."""
    noise = np.random.default_rng(1).integers(-8000, 8000, int(seconds * USER_RATE))
    return noise.astype("<i2").tobytes()


def silence(seconds: float) -> bytes:
    return bytes(2 * int(seconds * USER_RATE))


@dataclass
class Call:
    """What was sent and what came back."""

    responses: list[llm_bridge_pb2.ConverseResponse] = field(default_factory=list)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    error: BaseException | None = None
    _requests: asyncio.Queue[llm_bridge_pb2.ConverseRequest | None] = field(
        default_factory=asyncio.Queue
    )
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, **message: Any) -> None:
        self._requests.put_nowait(llm_bridge_pb2.ConverseRequest(**message))

    def say(self, samples: bytes, *, rate: int = USER_RATE, piece: int = 640) -> None:
        for start in range(0, len(samples), piece):
            part = samples[start : start + piece]
            self.send(audio=media_pb2.Pcm(samples=part, sample_rate=rate))

    def speak(self, seconds: float = 0.3) -> None:
        """A whole utterance of the user's."""
        self.say(silence(0.1) + voice(seconds) + silence(0.4))

    def played(self, turn: int, samples: int) -> None:
        self.send(playback=avatar_pb2.PlaybackPosition(turn=turn, turn_samples=samples))

    def play_all(self, turn: int) -> None:
        self.played(turn, self.spoken(turn))

    def hang_up(self) -> None:
        self._requests.put_nowait(None)

    def tell(self, response: llm_bridge_pb2.ConverseResponse) -> None:
        self.responses.append(response)
        self._changed.set()

    def told(self, kind: str) -> list[Any]:
        return [
            getattr(response, kind)
            for response in self.responses
            if response.WhichOneof("message") == kind
        ]

    def speech(self, turn: int) -> bytes:
        return b"".join(pcm.samples for pcm in self.told("speech") if pcm.turn == turn)

    def spoken(self, turn: int) -> int:
        return len(self.speech(turn)) // 2

    def finals(self, party: avatar_pb2.Party.ValueType) -> list[avatar_pb2.Transcript]:
        return [it for it in self.told("transcript") if it.final and it.party == party]

    def notices(self) -> list[avatar_pb2.NoticeKind.ValueType]:
        return [notice.kind for notice in self.told("notice")]

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def until(self, true: Callable[[Call], Any], *, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not true(self):
                self._changed.clear()
                with suppress(TimeoutError):  # metrics tell nobody when they change
                    async with asyncio.timeout(0.02):
                        await self._changed.wait()

    async def ended(self, turn: int) -> None:
        """Wait until all speech of a turn is here."""
        await self.until(lambda call: any(it.turn == turn for it in call.told("turn_ended")))

    async def requests(self) -> AsyncIterator[llm_bridge_pb2.ConverseRequest]:
        while (request := await self._requests.get()) is not None:
            yield request


def persona(**fields: Any) -> Persona:
    """Quick turn-taking, so that tests are; any field of the persona or of its patience."""
    patience = {"end_silence": 0.2, "min_interruption": 0.05, "silence_timeout": 0.0}
    patience |= {name: fields.pop(name) for name in list(fields) if name in patience}
    manners = {
        name: fields.pop(name)
        for name in ("push_to_talk", "uninterruptible", "uninterruptible_greeting")
        if name in fields
    }
    return Persona(manners=Manners(Patience(**patience), **manners), **fields)


@asynccontextmanager
async def conversation(
    make: Callable[[BridgeMetrics], Any],
    who: Persona,
    *,
    history: Sequence[Past] = (),
    next_turn: int = 1,
) -> AsyncIterator[Call]:
    """A conversation within the process; leaving hangs up and raises what it ended with.

    Args:
        make: makes a context that gives the speech model.
    """
    call = Call()
    metrics = BridgeMetrics(call.registry)
    async with make(metrics) as model:
        assert isinstance(model.name, str)
        speech_model: SpeechModel = model
        async with speech_model.dialogue(who, history) as dialogue:
            held = Conversation(
                dialogue,
                who,
                rate=speech_model.sample_rate,
                next_turn=next_turn,
                owed=Greet(who.greeting) if who.greeting and not history else None,
                tell=call.tell,
                metrics=metrics,
            )
            running = asyncio.create_task(held.run(call.requests()))
            try:
                yield call
                call.hang_up()
                await asyncio.wait_for(running, 5)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
