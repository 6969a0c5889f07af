"""The real parts on real speech: voice activity, whisper, both voices, with their weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.llm_bridge.local.ears import RATE, Done, Ears
from services.llm_bridge.local.flite import Flite
from services.llm_bridge.local.hibari import RATE as VOICE_RATE
from services.llm_bridge.local.kokoro import open_kokoro
from services.llm_bridge.local.model import LocalModel, judge_of_voice, local_model
from services.llm_bridge.local.voice import Voice
from services.llm_bridge.settings import Local
from services.runtime.device import DeviceThread
from services.runtime.metrics import BridgeMetrics
from services.runtime.resample import Resampler
from talkingmachines.media import Pcm
from talkingmachines.v1 import avatar_pb2
from tests.llm_bridge.call import conversation, persona, silence

CLIP = Path(__file__).parent / "clips" / "question.ogg"
SAID = "what would you like to talk about today"


def clip() -> bytes:
    """The clip at 16 kHz: a sentence of flite's voice slt."""
    with av.open(str(CLIP)) as file:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        frames = [it for frame in file.decode(audio=0) for it in resampler.resample(frame)]
        return b"".join(frame.to_ndarray().tobytes() for frame in frames)


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def test_speech_is_one_utterance_and_noise_is_none() -> None:
    ears = Ears(judge_of_voice(), end_silence=0.6, push_to_talk=False)
    speech = clip()
    events = list(ears.push(silence(1.0) + speech + silence(1.0)))
    (done,) = [event for event in events if isinstance(event, Done)]
    assert done.start == pytest.approx(1.0, abs=0.35)
    assert done.end == pytest.approx(1.0 + len(speech) / 2 / RATE, abs=0.35)
    noise = np.random.default_rng(0).normal(0, 900, 4 * RATE).astype("<i2").tobytes()
    hum = (2000 * np.sin(2 * np.pi * 100 * np.arange(4 * RATE) / RATE)).astype("<i2").tobytes()
    deaf = Ears(judge_of_voice(), end_silence=0.6, push_to_talk=False)
    assert list(deaf.push(noise + silence(1.0) + hum + silence(1.0))) == []


@pytest.mark.skipif(shutil.which("flite") is None, reason="needs the program flite")
async def test_flite_speaks_with_its_voices() -> None:
    flite = Flite()
    long, short = await flite.speak("A rather long sentence.", ""), await flite.speak("No.", "awb")
    assert len(long) > len(short) > flite.rate // 4
    assert await flite.speak("-- ... --", "") == b""
    assert await flite.speak("\0--help\n", "rms")


@pytest.mark.timeout(240)  # loading takes its time on a busy machine
async def test_everything_together_on_the_weights_that_are_packaged() -> None:
    async with loaded() as (model, metrics):
        await understands(model)
        await speaks(model, model._voice, "heart")
        await speaks(model, model._voice, "bittern")
        await converses(model, metrics)
        thread = DeviceThread("kokoro", waiting=2)
        await speaks(model, await open_kokoro(thread, threads=1), "stone")
        await thread.close(within=10)


@asynccontextmanager
async def loaded() -> AsyncIterator[tuple[LocalModel, BridgeMetrics]]:
    metrics = BridgeMetrics(CollectorRegistry())
    async with local_model(Local(), metrics) as model:
        yield model, metrics


async def understands(model: LocalModel) -> None:
    assert words(await model._recogniser.text(clip())) == SAID
    assert await model._recogniser.text(silence(2.0)) == ""


async def speaks(model: LocalModel, voice: Voice, who: str) -> None:
    """What is spoken is read back, names and numbers too."""
    sound = await voice.speak("My name is Ada, and I was born in 1984.", who)
    samples = np.frombuffer(sound, "<i2")
    assert np.abs(samples[: VOICE_RATE // 10]).max() > 300  # it does not begin with silence
    resampler = Resampler(VOICE_RATE, RATE)
    heard = resampler.push(Pcm(sound, VOICE_RATE)) + resampler.flush()
    understood = await model._recogniser.text(heard)
    assert "1984" in understood
    assert re.search(r"my name is \w+ and i was born", words(understood))
    assert await voice.speak("...", who) == b""


async def converses(model: LocalModel, metrics: BridgeMetrics) -> None:
    @asynccontextmanager
    async def make(_: BridgeMetrics) -> AsyncIterator[LocalModel]:
        yield model

    who = persona(end_silence=0.6, instructions="You are Ada, a sailor.")
    async with conversation(make, who) as call:
        call.say(silence(0.5) + clip() + silence(1.0))
        await call.until(lambda call: call.told("turn_ended"), seconds=60)
        call.play_all(1)
        await call.until(lambda call: call.finals(avatar_pb2.PARTY_CHARACTER))
    (question,) = call.finals(avatar_pb2.PARTY_USER)
    assert words(question.text) == SAID
    (answer,) = call.finals(avatar_pb2.PARTY_CHARACTER)
    assert answer.text
    assert call.spoken(1) > VOICE_RATE // 2
    sample = metrics.stage_seconds.labels("synthesise")._sum.get()
    assert 0 < sample < 60
