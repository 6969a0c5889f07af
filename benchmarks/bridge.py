"""From the end of the user's speech to the answer's first sound:
python -m benchmarks.bridge hibari|kokoro|flite

The local pipeline with the script as writer, on one core. A synthetic user asks in real time; its
voice is made beforehand. Besides, what each part costs by itself, in time and in processor time:
on a busy machine the second is the one to believe.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from benchmarks.record import Figure, record
from services.llm_bridge.conversation import Conversation
from services.llm_bridge.local.ears import RATE, Ears
from services.llm_bridge.local.model import LocalModel, judge_of_voice, local_model
from services.llm_bridge.persona import Manners, Patience, Persona
from services.llm_bridge.settings import Local
from services.runtime.metrics import BridgeMetrics, SpeechStage
from services.runtime.resample import Resampler
from talkingmachines.media import Pcm
from talkingmachines.v1 import llm_bridge_pb2, media_pb2

QUESTIONS = (
    "Hello, my name is Peter.",
    "What would you like to talk about today?",
    "I feel a little tired, because I worked the whole night.",
    "Do you like music?",
    "I remember a summer by the sea, when I was ten years old.",
    "Who are you?",
)
PERSONA = Persona(
    instructions="You are Ada, a retired lighthouse keeper. You love storms and old maps.",
    manners=Manners(Patience(silence_timeout=0.0)),
)
Speech = Literal["hibari", "kokoro", "flite"]
PIECE = 640  # bytes: 20 ms at 16 kHz
END_SILENCE = PERSONA.manners.patience.end_silence


async def main(speech: Speech) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    metrics = BridgeMetrics(CollectorRegistry())
    started = perf_counter()
    async with local_model(Local(speech=speech), metrics) as model:
        load_seconds = perf_counter() - started
        sounds = [await asked(model, text) for text in QUESTIONS]
        parts = await costs(model, sounds)
        waits = [await answered(model, metrics, sound) for sound in sounds]
    stages = {stage.value: mean(metrics, stage) for stage in SpeechStage}
    results = {
        "end_silence_seconds": END_SILENCE,
        "load_seconds": round(load_seconds, 2),
        "first_sound_seconds": {"each": waits, "median": median(waits), "most": max(waits)},
        "mean_stage_seconds": stages,
        "parts": parts,
    }
    record(f"bridge-{speech}-cpu", figures(results), results)
    print(results["first_sound_seconds"], stages, parts, sep="\n")


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """What is followed from run to run."""
    first = results["first_sound_seconds"]
    costs = {
        f"{part} per second of sound": Figure(round(1e3 * cost["processor_per_sound"], 1), "ms")
        for part, cost in results["parts"].items()
    }
    return {"first sound, median": Figure(round(first["median"], 3), "s"), **costs}


async def asked(model: LocalModel, text: str) -> bytes:
    """A question as a user's microphone would give it, at 16 kHz."""
    sound = await model._voice.speak(text, "stone")  # where it is not known, the default
    resampler = Resampler(model.sample_rate, RATE)
    spoken = resampler.push(Pcm(sound, model.sample_rate)) + resampler.flush()
    return spoken[: len(spoken) - 2 * int(0.3 * RATE)]  # without the pause at its end


async def costs(model: LocalModel, sounds: list[bytes]) -> dict[str, Any]:
    """Each part alone."""
    ears = Ears(judge_of_voice(), end_silence=END_SILENCE, push_to_talk=False)

    async def listen() -> float:
        list(ears.push(sounds[2]))
        return len(sounds[2]) / 2 / RATE

    async def recognise() -> float:
        await model._recogniser.text(sounds[2])
        return len(sounds[2]) / 2 / RATE

    async def first_clause() -> float:
        return (
            len(await model._voice.speak("I'm sorry to hear that.", "reed")) / 2 / model.sample_rate
        )

    async def long_clause() -> float:
        text = "It was the summer in which the great storm came, and the lamp went out for a night."
        return len(await model._voice.speak(text, "reed")) / 2 / model.sample_rate

    work = (listen, recognise, first_clause, long_clause)
    return {part.__name__: await timed(part) for part in work}


async def timed(work: Callable[[], Awaitable[float]], *, times: int = 5) -> dict[str, float]:
    """Medians of wall and processor seconds, and what they amount to per second of sound."""
    walls, cpus, seconds = [], [], 0.0
    for _ in range(times):
        wall, cpu = perf_counter(), process_time()
        seconds = await work()
        walls.append(perf_counter() - wall)
        cpus.append(process_time() - cpu)
    return {
        "sound_seconds": round(seconds, 2),
        "wall_seconds": round(median(walls), 4),
        "processor_seconds": round(median(cpus), 4),
        "processor_per_sound": round(median(cpus) / seconds, 4),
    }


async def answered(model: LocalModel, metrics: BridgeMetrics, sound: bytes) -> float:
    """Seconds from the last of the user's sound to the first of the answer's."""
    came = asyncio.Event()
    first: list[float] = []

    def tell(response: llm_bridge_pb2.ConverseResponse) -> None:
        if response.HasField("speech") and not first:
            first.append(perf_counter())
        if response.HasField("turn_ended"):
            came.set()

    async with model.dialogue(PERSONA, []) as dialogue:
        conversation = Conversation(
            dialogue,
            PERSONA,
            rate=model.sample_rate,
            next_turn=1,
            owed=None,
            tell=tell,
            metrics=metrics,
        )
        ends = perf_counter() + len(sound) / 2 / RATE
        talking = asyncio.create_task(conversation.run(microphone(sound)))
        await came.wait()
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
    return round(first[0] - ends, 3)


async def microphone(sound: bytes) -> Any:
    begun = perf_counter()
    sent = 0
    while True:
        piece = sound[sent : sent + PIECE].ljust(PIECE, b"\0")
        sent += PIECE
        await asyncio.sleep(max(0.0, begun + sent / 2 / RATE - perf_counter()))
        pcm = media_pb2.Pcm(samples=piece, sample_rate=RATE)
        yield llm_bridge_pb2.ConverseRequest(audio=pcm)


def mean(metrics: BridgeMetrics, stage: SpeechStage) -> float:
    histogram = metrics.stage_seconds.labels(stage)
    (samples,) = histogram.collect()
    values = {sample.name.rpartition("_")[2]: sample.value for sample in samples.samples}
    return round(values["sum"] / max(1, values["count"]), 3)


if __name__ == "__main__":
    asyncio.run(main(Local.model_validate({"speech": sys.argv[1]} if sys.argv[1:] else {}).speech))
