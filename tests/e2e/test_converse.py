"""A conversation with the real fleet: spoken to, understood, answered, drawn, interrupted.

Real Ray with both engines, a real gateway, and the bridge with the parts that are packaged: voice
activity, whisper, the script as writer, Hibari. The user's voice comes in real time.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from talkingmachines.media import Pcm
from talkingmachines.picture import PixelFormat, VideoFormat, VideoFrame
from talkingmachines.session import Session
from talkingmachines.speech import live, read_file
from talkingmachines.v1 import avatar_pb2
from tests.e2e.calls import PATIENCE
from tests.e2e.fleet import RunningFleet
from tests.e2e.model import CHARACTERS
from tests.e2e.test_fleet import typed

pytestmark = pytest.mark.timeout(600)  # a machine that is busy draws slowly

USER, CHARACTER = avatar_pb2.PARTY_USER, avatar_pb2.PARTY_CHARACTER
CLIP = Path(__file__).parents[1] / "llm_bridge" / "clips" / "question.ogg"
QUESTION = read_file(CLIP)
SAID = "what would you like to talk about today"
_LOUD = 300
_EARLY_SECONDS = 0.15  # that a frame may come before its time: pacing is the gateway's clock's


@dataclass
class Call:
    """What a client got, and when."""

    session: Session
    frames: list[VideoFrame] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    sounds: list[Pcm] = field(default_factory=list)
    skews: list[float] = field(default_factory=list)  # of each sound to the picture before it
    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self._microphone: asyncio.Task[None] | None = None

    def speak(self, speech: Pcm) -> None:
        """Say it in real time, and be silent afterwards."""
        self.fall_silent()
        self._microphone = self.session.say(live(speech))

    def fall_silent(self) -> None:
        if self._microphone is not None:
            self._microphone.cancel()

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                assert not self._reading.done(), "the call ended"
                self._changed.clear()
                await self._changed.wait()

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def finals(self, party: avatar_pb2.Party.ValueType) -> list[avatar_pb2.Transcript]:
        words = self.told(avatar_pb2.Transcript)
        return [it for it in words if it.final and it.party == party]

    def loud(self, turn: int) -> float:
        """Seconds of sound in a turn."""
        pieces = [pcm for pcm in self.sounds if pcm.turn == turn]
        return sum(pcm.seconds for pcm in pieces if np.abs(pcm.array()).max() > _LOUD)

    @property
    def heard(self) -> int:
        """Sample of the media clock that the client has heard to."""
        return self.sounds[-1].end_sample

    async def _read(self) -> None:
        clock = asyncio.get_running_loop().time
        async for item in self.session:
            match item:
                case VideoFrame():
                    self.frames.append(item)
                    self.times.append(clock())
                case Pcm():
                    shown = self.session.seconds(self.frames[-1])
                    self.skews.append(shown - self.session.seconds(item))
                    self.sounds.append(item)
                case _:
                    self.events.append(item)
            self._changed.set()


@asynccontextmanager
async def calling(running: RunningFleet) -> AsyncIterator[Call]:
    persona = avatar_pb2.Persona(instructions="You are Ada, a retired lighthouse keeper.")
    async with (
        running.client() as client,
        client.talk(
            CHARACTERS[0],
            mode=avatar_pb2.TALK_MODE_CONVERSE,
            video=VideoFormat(PixelFormat.RGB24),
            persona=persona,
            max_queue_seconds=60,
        ) as session,
    ):
        call = Call(session)
        yield call
        call.fall_silent()


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


async def test_what_a_user_says_is_understood_answered_drawn_and_can_be_talked_over(
    running: RunningFleet,
) -> None:
    async with calling(running) as call:
        await call.until(lambda: len(call.frames) > 10)
        call.speak(QUESTION)
        await call.until(lambda: call.finals(CHARACTER))
        answered(call)
        call.speak(QUESTION)
        await call.until(lambda: call.loud(2) > 0.3)
        begun = call.heard
        call.speak(QUESTION)  # over the answer
        await call.until(lambda: call.told(avatar_pb2.Interrupted))
        (cut,) = call.told(avatar_pb2.Interrupted)
        await call.until(lambda: call.loud(4) > 0.3)
        interrupted(call, cut, begun)
        now = call.heard
        call.session.interrupt()  # by a button
        await call.until(lambda: len(call.told(avatar_pb2.Interrupted)) == 2)
        last = call.told(avatar_pb2.Interrupted)[1]
        rate = call.session.spec.sample_rate
        print(f"from the button to silence: {(last.sample - now) / rate:.3f} s of media")
        assert last.sample - now <= 0.3 * rate


def test_the_command_line_asks_and_films_the_answer(running: RunningFleet, tmp_path: Path) -> None:
    asked = ("talk", CLIP, "--converse", "--avatar", CHARACTERS[0], "--out", tmp_path / "a.mp4")
    done = typed(running, *asked, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    question, answer = report["said"]
    assert (question["party"], words(question["text"])) == ("you", SAID)
    assert answer["party"] == "character"
    assert report["answer_seconds"] > 0.5
    with av.open(str(tmp_path / "a.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == report["frames"]
    with av.open(str(tmp_path / "a.mp4")) as film:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])
    assert np.abs(sound).max() > 0.05


def answered(call: Call) -> None:
    """Both sides are in the transcript, the answer is heard, and lips and sound come together."""
    spec = call.session.spec
    (question,), (answer,) = call.finals(USER), call.finals(CHARACTER)
    assert words(question.text) == SAID
    assert answer.text
    assert (question.turn, answer.turn, answer.interrupted) == (1, 1, False)
    (started,) = call.told(avatar_pb2.TurnStarted)
    (ended,) = call.told(avatar_pb2.TurnEnded)
    assert answer.first_sample == started.first_sample >= question.end_sample
    assert answer.end_sample == pytest.approx(ended.end_sample, abs=spec.sample_rate / 50)
    assert call.loud(1) > 1.0
    assert [frame.frame for frame in call.frames] == list(range(len(call.frames)))
    assert max(map(abs, call.skews)) <= 0.04
    early = [number / spec.fps - (at - call.times[0]) for number, at in enumerate(call.times)]
    assert max(early) <= _EARLY_SECONDS
    told = call.session.statistics
    print(f"answered after {told.answer.ToTimedelta().total_seconds():.2f} s")


def interrupted(call: Call, cut: avatar_pb2.Interrupted, begun: int) -> None:
    """Nothing of the answer is heard after the cut, and the face listens from the next chunk on."""
    spec = call.session.spec
    assert cut.turn == 2
    print(f"from the user's voice to silence: {(cut.sample - begun) / spec.sample_rate:.2f} s")
    after = [pcm for pcm in call.sounds if pcm.turn == 3]
    assert after[0].first_sample == cut.sample
    assert not any(pcm.array().any() for pcm in after)
    first = next(frame for frame in call.frames if frame.turn == 3)
    assert first.frame == cut.frame
    (final,) = [it for it in call.finals(CHARACTER) if it.turn == 2]
    assert final.interrupted
    assert abs(final.end_sample - cut.sample) <= 1  # of another rate: rounded
    # The chunk that was on plays to its end; those drawn ahead never come.
    listening = spec.first_frame(first.chunk + 1)
    assert listening - cut.frame <= spec.frames_per_chunk
