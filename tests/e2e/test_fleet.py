"""The whole system from outside: the command line and the SDK against a real fleet."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from talkingmachines.client import Client
from talkingmachines.media import Pcm
from talkingmachines.picture import PixelFormat, RawPicture, VideoFormat, VideoFrame
from tests.e2e.fleet import ROOT, RunningFleet, start
from tests.e2e.model import CHARACTERS, write_model

pytestmark = pytest.mark.timeout(600)  # a machine that is busy starts a fleet in minutes

RATE = 24_000


def tone(seconds: float, hertz: float = 220.0) -> Pcm:
    samples = np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)
    return Pcm((samples * 15_000).astype("<i2").tobytes(), RATE)


def typed(running: RunningFleet, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "talkingmachines.cli.app", *[str(word) for word in words]],
        cwd=ROOT,
        env=os.environ | {"TM_LOCAL_DATA": str(running.data)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def said(client: Client, avatar: str, speech: Pcm, *, seed: int) -> tuple[list[str], bytes]:
    """Digests of the pictures, and the sound, of one call."""
    pictures, sound = list[str](), list[bytes]()
    async with client.talk(avatar, seed=seed, video=VideoFormat(PixelFormat.RGB24)) as session:
        session.say(speech)
        session.hang_up()
        async for item in session:
            match item:
                case VideoFrame(picture=RawPicture(pixels=pixels), frame=frame):
                    assert frame == len(pictures)
                    pictures.append(hashlib.sha256(pixels).hexdigest())
                case Pcm(samples=samples):
                    sound.append(samples)
    return pictures, b"".join(sound)


def test_talking_makes_a_film_that_plays(running: RunningFleet, tmp_path: Path) -> None:
    speech = tmp_path / "speech.wav"
    pcm = tone(2.0)
    with wave.open(str(speech), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm.samples)
    out = tmp_path / "talk.mp4"
    done = typed(running, "talk", speech, "--avatar", "Ada", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    with av.open(str(out)) as film:
        assert (film.streams.video[0].width, film.streams.audio[0].rate) == (64, 16_000)
        frames = sum(1 for _ in film.decode(video=0))
    assert frames == report["frames"]
    assert 2.0 <= frames / 25 <= 3.5
    with av.open(str(out)) as film:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])
    assert np.abs(sound).max() > 0.2


async def test_two_sessions_at_once_are_as_if_alone(running: RunningFleet) -> None:
    async with running.client() as client:
        asked: Sequence[tuple[str, Pcm, int]] = (
            (CHARACTERS[0], tone(1.5), 1),
            (CHARACTERS[1], tone(1.5, 330.0), 2),
        )
        alone = [await said(client, *each[:2], seed=each[2]) for each in asked]
        together = await asyncio.gather(*(said(client, *each[:2], seed=each[2]) for each in asked))
    for (pictures, sound), (pictures_together, sound_together) in zip(alone, together, strict=True):
        common = min(len(pictures), len(pictures_together))
        assert common >= 36
        assert _speech(sound) == _speech(sound_together)
    assert not set(together[0][0]) & set(together[1][0]), "no picture is in both"


def _speech(sound: bytes) -> bytes:
    return sound.strip(b"\0")


async def test_characters_are_there_from_the_start(running: RunningFleet) -> None:
    assert tuple(running.addresses.characters) == CHARACTERS
    async with running.client() as client:
        found = {avatar.avatar_id: avatar async for avatar in client.avatars.list()}
    assert set(CHARACTERS) <= set(found)
    assert all(found[name].shared for name in CHARACTERS)


def test_status_finds_every_process(running: RunningFleet) -> None:
    found: dict[str, Any] = {"replicas": []}
    for _ in range(5):  # a process that is too busy to answer in time is left out
        if len(found["replicas"]) < 2:
            found = json.loads(typed(running, "status", "--json").stdout)
    assert found["gateways"] == 1
    assert found["store_up"]
    assert {replica["service"] for replica in found["replicas"]} == {"score", "vae"}
    doctor = json.loads(typed(running, "doctor", "--json").stdout)
    assert any(running.addresses.address in finding["found"] for finding in doctor)


async def test_a_session_outlives_the_gateway_process(running: RunningFleet) -> None:
    """The fleet starts it again, and the client goes on where it was."""
    async with running.client() as client:
        undisturbed, _ = await said(client, CHARACTERS[0], tone(3.0), seed=3)
        pictures: list[str] = []
        async with client.talk(
            CHARACTERS[0], seed=3, video=VideoFormat(PixelFormat.RGB24)
        ) as session:
            session.say(tone(3.0))
            session.hang_up()
            async for item in session:
                match item:
                    case VideoFrame(picture=RawPicture(pixels=pixels), frame=frame):
                        assert frame == len(pictures)
                        pictures.append(hashlib.sha256(pixels).hexdigest())
                        if frame == 30:
                            running.kill("services.gateway")
    assert pictures == undisturbed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"MODEL": "nowhere"}, "no model in nowhere: it has no score/"),
        ({"PORT": "taken"}, "it is taken"),
        ({"DATA": "/proc/none"}, "cannot write to /proc/none"),
        ({"SESSIONS": "none"}, "TM_LOCAL_SESSIONS"),
        ({"DATA": "running"}, "is running already"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_fleet_that_cannot_start_says_why(
    change: dict[str, str], text: str, running: RunningFleet, tmp_path: Path
) -> None:
    values = {
        "taken": running.addresses.address.rpartition(":")[2],
        "running": str(running.data),
    }
    given: dict[str, Any] = {
        "MODEL": str(write_model(tmp_path / "model")),
        "DATA": str(tmp_path / "data"),
        "PORT": "0",
    }
    process = start(given | {name: values.get(value, value) for name, value in change.items()})
    _, said_ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert text in said_.decode()
    assert len(said_.decode().splitlines()) <= 3


def test_a_model_that_does_not_fit_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "vae" / "config.json").write_text("{}")
    process = start({"MODEL": str(model), "DATA": str(tmp_path / "data"), "PORT": "0"})
    _, said_ = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "config" in said_.decode()
