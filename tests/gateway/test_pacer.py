"""Playout by itself: frames by hand, a sink in memory, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.gateway.chunk import Chunk, Rewind
from services.gateway.chunker import Chunker
from services.gateway.log import SessionLog
from services.gateway.pacer import Lead, Pacer, Position
from services.gateway.spans import Spans
from services.runtime.metrics import GatewayMetrics
from services.runtime.settings import Telemetry
from services.runtime.tracing import Tracing
from talkingmachines.media import Latents, Pcm, Tensor
from talkingmachines.picture import PixelFormat, RawPicture, VideoFrame
from tests.gateway.stage import SPEC
from tests.virtual_time import run_virtual

SIZE = SPEC.frames_per_chunk


@dataclass
class Seen:
    """What was played: frame, turn and time of each."""

    frames: list[tuple[int, int, float]] = field(default_factory=list)
    samples: int = 0

    def frame(self, frame: VideoFrame) -> bool:
        now = asyncio.get_running_loop().time()
        self.frames.append((frame.frame, frame.turn, round(now, 6)))
        return True

    def sound(self, pcm: Pcm) -> None:
        self.samples = pcm.end_sample

    def turn_started(self, turn: int, sample: int, speaker: int) -> None: ...
    def held(self, frame: int, seconds: float) -> None: ...
    def turn_ended(self, turn: int, sample: int) -> None: ...


class Hand:
    """Does by hand what the engines do."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.log = SessionLog(SPEC)
        self.chunker = Chunker(SPEC, speakers=1)
        self.registry = CollectorRegistry()
        self.pacer = Pacer(
            SPEC,
            self.log,
            self.chunker,
            self.seen,
            lead=Lead(),
            keep=2,
            metrics=GatewayMetrics(self.registry),
            spans=Spans(Tracing("gateway", Telemetry())),
            start=Position(0, 0),
            opened_at=0.0,
        )
        self._queue: asyncio.Queue[VideoFrame | None] = asyncio.Queue()
        self.playing = asyncio.create_task(self.pacer.play(self._frames()))

    def draw(self) -> None:
        """Cut the next chunk and draw it."""
        cut = self.chunker.cut(self.log.next_chunk)
        self.log.append(cut)
        self.answer(cut)

    def answer(self, cut: Chunk) -> None:
        tensor = Tensor.from_array(np.zeros((1, 1, 1, 1)))
        self.log.answer(Latents(cut.turn, cut.chunk, tensor))

    def give(self, first: int, end: int, *, turn: int = 0) -> None:
        """Decoded frames arrive."""
        picture = RawPicture(PixelFormat.RGB24, 1, 1, bytes(3))
        for number in range(first, end):
            self._queue.put_nowait(VideoFrame(turn, number // SIZE, number, picture))

    async def end(self) -> Seen:
        self._queue.put_nowait(None)
        await self.playing
        return self.seen

    async def _frames(self) -> AsyncIterator[VideoFrame | Rewind]:
        while (item := await self._queue.get()) is not None:
            yield item


def test_the_sooner_a_chunks_first_frames_come_the_later_it_is_asked_for() -> None:
    """Of chunks that take as long in all, those that come piece by piece are asked for later, so
    that speech waits less for its chunk; and no picture is held for it."""

    async def main(pieces: int) -> float:
        hand, notices = Hand(), list[float]()
        async for chunk in hand.pacer.wanted():
            assert not isinstance(chunk, Rewind)
            notices.append(hand.pacer.slack(chunk.chunk))
            if chunk.chunk == 40:
                break
            await asyncio.sleep(0.1)  # drawn
            hand.answer(chunk)
            first = SPEC.first_frame(chunk.chunk)
            for piece in range(pieces):
                await asyncio.sleep(0.3 / pieces)  # decoded
                size = SIZE // pieces
                hand.give(first + piece * size, first + (piece + 1) * size)
            await asyncio.sleep(0)
        assert hand.pacer.playout.holds == 0
        await hand.end()
        return max(notices[36:])

    assert run_virtual(main(1)) == pytest.approx(1.5 * 0.4, abs=0.02)
    assert run_virtual(main(3)) == pytest.approx(1.5 * 0.2, abs=0.02)


def test_a_late_frame_moves_all_that_follow_and_its_sound_with_it() -> None:
    async def main() -> Seen:
        hand = Hand()
        hand.draw()
        hand.give(0, 6)
        await asyncio.sleep(1.0)
        hand.give(6, 12)
        return await hand.end()

    seen = run_virtual(main())
    times = [time for _, _, time in seen.frames]
    assert times == [round(frame / 25, 6) for frame in range(6)] + [
        round(1 + frame / 25, 6) for frame in range(6)
    ]
    assert seen.samples == SPEC.samples_per_chunk


def test_frames_that_were_under_way_when_it_was_interrupted_are_not_played() -> None:
    async def main() -> Seen:
        hand = Hand()
        hand.draw()
        hand.draw()
        hand.give(0, 14)
        await asyncio.sleep(13 / 25 - 0.01)  # frames 0 to 12 are out
        hand.chunker.interrupt(1)
        at = hand.pacer.rewind(1)
        assert at == Position(13, SPEC.sample_of_frame(13))
        hand.give(13, 24)  # still of the old turn
        await asyncio.sleep(0.2)
        hand.draw()
        hand.give(13, 24, turn=1)
        return await hand.end()

    seen = run_virtual(main())
    assert [frame for frame, _, _ in seen.frames] == list(range(24))
    assert [turn for _, turn, _ in seen.frames] == [0] * 13 + [1] * 11


def test_what_the_client_shows_again_comes_at_once() -> None:
    async def main() -> Seen:
        hand = Hand()
        hand.draw()
        hand.give(0, 12)
        await asyncio.sleep(0.39)  # frames 0 to 9 are out, the client shows frame 4
        hand.pacer.played(Position(5, SPEC.sample_of_frame(5)), turn=0)
        hand.chunker.interrupt(1)
        hand.pacer.rewind(1)
        unheard = hand.registry.get_sample_value("tm_interrupt_to_silence_seconds_sum")
        assert unheard == pytest.approx(5 / 25)  # frames 5 to 9 were on their way
        hand.give(5, 12, turn=1)
        return await hand.end()

    seen = run_virtual(main())
    again = [(frame, time) for frame, turn, time in seen.frames if turn == 1]
    assert again == [(frame, 0.39) for frame in range(5, 10)] + [(10, 0.4), (11, 0.44)]


def test_a_position_is_believed_within_reason() -> None:
    async def main() -> None:
        hand = Hand()
        hand.draw()
        hand.give(0, 12)
        await asyncio.sleep(0.39)

        def shown(frame: int, sample: int = 0, turn: int = 0) -> Position:
            hand.pacer.played(Position(frame, sample), turn=turn)
            return hand.pacer.shown

        assert shown(1_000, 10**9) == hand.pacer.next
        assert shown(3) == hand.pacer.next  # less than before
        await hand.end()

    run_virtual(main())
