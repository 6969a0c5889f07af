"""Calls to the real fleet for tests: each with a mark of its own, and what is true of each.

A call sends all its speech with the header, so it is spoken from the first chunk on: then all its
pictures are a function of character, seed and speech, and can be compared frame by frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talkingmachines import duration
from talkingmachines.errors import Unavailable
from talkingmachines.media import Pcm
from talkingmachines.picture import PixelFormat, RawPicture, VideoFormat
from talkingmachines.v1 import avatar_pb2, media_pb2
from tests.gateway.fleet import Talk, eventually, png

DRIVE = avatar_pb2.TALK_MODE_DRIVE
RAW = VideoFormat(PixelFormat.RGB24).to_proto()
RATE = 16_000  # the stream's own: speech comes back bit for bit
SECONDS = 5.0
PATIENCE = 240.0  # for anything at all, on a machine that is busy with other things
LEAST_PSNR = 40.0  # dB


@dataclass(frozen=True, slots=True)
class Caller:
    """One of those that call at the same time; its number marks what it says and sees."""

    number: int

    @property
    def speech(self) -> Pcm:
        """Noise that nobody else says, as loud as speech."""
        samples = np.random.default_rng(self.number).integers(-9_000, 9_000, int(SECONDS * RATE))
        return Pcm(samples.astype("<i2").tobytes(), RATE)

    async def call(self, stub: Any) -> Talk:
        talk = Talk().start(
            stub,
            avatar_id=await self.avatar(stub),
            mode=DRIVE,
            seed=self.number,
            video=RAW,
            # Engines on a busy machine take fewer sessions.
            max_queue_time=duration.to_proto(PATIENCE),
        )
        talk.say(self.speech)
        return talk

    async def avatar(self, stub: Any) -> str:
        """A character of its own; made by the first call of each fleet."""
        face = avatar_pb2.Speaker(face=media_pb2.Region(x=0.1, y=0.1, width=0.8, height=0.8))
        request = avatar_pb2.CreateAvatarRequest(
            display_name=f"caller {self.number}",
            image=png(seed=self.number),
            speakers=[face],
            idempotency_key=f"caller {self.number}",
        )
        return str((await stub.CreateAvatar(request)).avatar.avatar_id)


@dataclass
class Seen:
    """What one caller got, over one connection or several."""

    frames: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    sound: dict[int, bytes] = field(default_factory=dict)  # by first sample
    held: float = 0.0  # seconds, of the longest wait for a frame that the gateway knows of
    rebuilds: int = 0
    hand_overs: int = 0

    def take(self, talk: Talk, *, before: int | None = None) -> None:
        """Add what a connection brought, up to frame `before`; nothing may come twice."""
        for frame in talk.frames:
            if before is None or frame.frame < before:
                assert frame.frame not in self.frames
                assert isinstance(frame.picture, RawPicture)
                self.frames[frame.frame] = np.frombuffer(frame.picture.pixels, np.uint8)
        for pcm in talk.sounds:
            if before is None or pcm.first_sample < before * RATE // talk.told("ready")[0].spec.fps:
                assert pcm.first_sample not in self.sound
                self.sound[pcm.first_sample] = pcm.samples
        for told in talk.told("statistics")[-1:]:
            self.held += told.held.seconds + told.held.nanos / 1e9
            self.rebuilds += told.rebuilds
            self.hand_overs += told.hand_overs

    @property
    def heard(self) -> bytes:
        return b"".join(samples for _, samples in sorted(self.sound.items()))


async def heard_out(talks: Sequence[Talk]) -> list[Seen]:
    """Hang up, and what each got."""
    for talk in talks:
        talk.hang_up()
    seen = []
    for talk in talks:
        await talk.over(PATIENCE)
        assert talk.error is None, talk.error
        seen.append(Seen())
        seen[-1].take(talk)
    return seen


async def resumed(talk: Talk, stub: Any) -> Talk:
    """The call's continuation on a new connection, as soon as there is a gateway again."""
    ready = talk.told("ready")[0]
    played = avatar_pb2.PlaybackPosition(
        frame=talk.frames[-1].frame + 1, sample=talk.sounds[-1].end_sample
    )
    async with asyncio.timeout(PATIENCE):
        while True:
            again = Talk().start(stub, resume_token=ready.resume_token, playback=played, video=RAW)
            await eventually(partial(_answered, again), PATIENCE)
            if again.told("ready"):
                return again
            assert isinstance(again.error, Unavailable), again.error
            await asyncio.sleep(0.2)


async def taken(caller: Caller, stub: Any) -> None:
    """Wait until new calls are taken: who is told to try again does."""
    async with asyncio.timeout(PATIENCE):
        while True:
            talk = await caller.call(stub)
            talk.hang_up()
            await talk.over(PATIENCE)
            if talk.error is None:
                return
            assert isinstance(talk.error, Unavailable), talk.error
            await asyncio.sleep(0.2)


def _answered(talk: Talk) -> bool:
    return bool(talk.told("ready") or talk.error)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def check_same(callers: Sequence[Caller], got: Sequence[Seen], alone: dict[int, Seen]) -> None:
    """What each caller got is what it got undisturbed and alone: no frame repeated or lost, no
    sample of anybody else's."""
    for caller, seen in zip(callers, got, strict=True):
        expected = alone[caller.number]
        assert list(seen.frames) == list(range(len(seen.frames)))
        spoken = len(caller.speech.samples)
        assert seen.heard[:spoken] == caller.speech.samples
        assert not any(seen.heard[spoken:])
        common = min(len(seen.frames), len(expected.frames))
        assert common >= SECONDS * 20
        worst = min(psnr(seen.frames[n], expected.frames[n]) for n in range(common))
        assert worst >= LEAST_PSNR, f"caller {caller.number}: {worst:.1f} dB"


def check_apart(alone: dict[int, Seen]) -> None:
    """No caller's pictures could be taken for another's: else comparing them would show nothing."""
    numbers = sorted(alone)
    for one in numbers:
        for other in numbers[:one]:
            first, second = alone[one].frames, alone[other].frames
            assert max(psnr(first[n], second[n]) for n in (0, 30, 60, 90)) < LEAST_PSNR - 10
