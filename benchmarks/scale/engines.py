"""Score and VAE without a model: replicas that keep to the contract, and Serve's way to them.

Slots, ages, hand-overs, overload and drains are the replicas' own code
(`services.runtime.attachments`); only the device is a queue whose service times are drawn. The
ingress picks as Ray Serve's router does: the shorter queue of two, by lengths that it remembers
for ten seconds, and a pause that doubles while neither has room.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

from benchmarks.scale.store import MARK
from services.runtime.attachments import Attachment, Attachments, Terms
from services.runtime.drain import Drain
from services.runtime.metrics import Engine, EngineMetrics
from talkingmachines import duration
from talkingmachines.errors import TalkingMachinesError, Unavailable
from talkingmachines.media import DataType, Latents, Tensor, spec_to_proto
from talkingmachines.picture import Codec, EncodedPicture, VideoFrame
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import media_pb2, score_pb2, vae_pb2

# A chunk is 0.75 s, as 12 frames at 16 a second are; here it has 3 of them, which cost less.
SPEC = StreamSpec(
    sample_rate=8_000,
    fps=4,
    latents_per_chunk=3,
    frames_per_latent=1,
    width=16,
    height=16,
    lookahead_samples=800,
)
SCORE_CHECKPOINT, VAE_CHECKPOINT = "simulated-score", "simulated-vae"
_UNARY = 4  # as services.runtime.replicas gives Serve
_REMEMBERED_SECONDS = 10.0  # RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S
_FIRST_BACKOFF, _LAST_BACKOFF = 0.025, 0.5  # RAY_SERVE_ROUTER_RETRY_*
_LATENTS = Tensor(DataType.FLOAT32, (1, 1, 2, 2), MARK)
_TAIL_LATENTS = 38  # Wan2.1's VAE; a score that needs one chunk back


@dataclass(frozen=True, slots=True)
class Work:
    """What a kind of replica takes, in seconds of its device."""

    slots: int
    chunk_seconds: float  # the median; log-normal
    attach_seconds: float
    spread: float = 0.15


WORK = {
    Engine.SCORE: Work(slots=4, chunk_seconds=0.13, attach_seconds=0.07),
    Engine.VAE: Work(slots=8, chunk_seconds=0.06, attach_seconds=0.12),
}


class Device:
    """One piece of work after the other, the one that is due first before others."""

    def __init__(self, spread: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._spread = spread
        self._waiting: list[tuple[float, int, float, Callable[[], None]]] = []
        self._order = count()
        self._busy = False

    def submit(self, due: float, seconds: float, done: Callable[[], None]) -> None:
        heappush(self._waiting, (due, next(self._order), seconds, done))
        if not self._busy:
            self._next()

    async def run(self, seconds: float) -> None:
        done = self._loop.create_future()
        finish = lambda: None if done.done() else done.set_result(None)
        self.submit(self._loop.time(), seconds, finish)
        await done

    def _next(self) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            _, _, seconds, done = heappop(self._waiting)
            seconds *= random.lognormvariate(0.0, self._spread)
            self._loop.call_later(seconds, self._finish, done)

    def _finish(self, done: Callable[[], None]) -> None:
        done()
        self._next()


@dataclass(frozen=True, slots=True)
class _Answer:
    turn: int
    chunk: int
    skip: int = 0


class Replica:
    """One replica of either kind."""

    def __init__(
        self, engine: Engine, name: str, zone: int, terms: Terms, metrics: EngineMetrics
    ) -> None:
        self.engine, self.name, self.zone = engine, name, zone
        self.work = WORK[engine]
        self.drain = Drain(1e9)
        self.attachments: Attachments[Any, _Answer] = Attachments(
            terms,
            engine=engine,
            slots=lambda: self.work.slots,
            unhealthy=lambda: None,
            drain=self.drain,
            metrics=metrics,
        )
        self.most = self.work.slots + terms.headroom + _UNARY
        self.device = Device(self.work.spread)
        self.calls: set[StreamCall] = set()
        self.silent = False  # its machine is gone without a word

    async def start(self) -> None:
        await self.attachments.__aenter__()

    @property
    def running(self) -> int:
        return len(self.calls)

    def kill(self, *, silent: bool) -> None:
        """End it; its streams break, or nothing is heard of them any more."""
        self.silent = True
        for call in list(self.calls):
            call.lose(silent=silent)
        for task in self.attachments._watching:
            task.cancel()

    async def serve(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        owed = 0
        async with self.attachments.attach(requests) as attachment:
            header = await attachment.header()
            if not header.attach.tail.next_chunk:
                self.attachments.begin()
            await self.device.run(self.work.attach_seconds)
            attachment.establish()
            yield self._attached(attachment)
            events = attachment.events(owing=lambda: owed > 0)
            async for event in events:
                match event:
                    case _Answer():
                        owed -= 1
                        for reply in self._replies(event):
                            yield reply
                    case media_pb2.HandOver():
                        yield self._response(hand_over=event)
                    case _ if event.HasField("chunk"):
                        owed += 1
                        answer, slack = self._asked(event.chunk)
                        self.device.submit(
                            loop.time() + slack,
                            self.work.chunk_seconds,
                            lambda answer=answer: attachment.deliver(answer),  # type: ignore[misc]
                        )
                    case _:
                        pass  # rewinds, key frames and settings cost nothing here

    def _asked(self, chunk: Any) -> tuple[_Answer, float]:
        slack = duration.from_proto(chunk.slack)
        if self.engine is Engine.SCORE:
            return _Answer(chunk.turn, chunk.chunk), slack
        return _Answer(chunk.latents.turn, chunk.latents.chunk, chunk.skip_frames), slack

    def _replies(self, answer: _Answer) -> list[Any]:
        if self.engine is Engine.SCORE:
            latents = Latents(answer.turn, answer.chunk, _LATENTS)
            return [score_pb2.DenoiseResponse(latents=latents.to_proto())]
        first = SPEC.first_frame(answer.chunk)
        picture = EncodedPicture(Codec.JPEG, key_frame=True, payload=b"picture")
        return [
            vae_pb2.DecodeResponse(
                frame=VideoFrame(answer.turn, answer.chunk, frame, picture).to_proto()
            )
            for frame in range(first + answer.skip, first + SPEC.frames_per_chunk)
        ]

    def _response(self, **message: Any) -> Any:
        score = self.engine is Engine.SCORE
        return (score_pb2.DenoiseResponse if score else vae_pb2.DecodeResponse)(**message)

    def _attached(self, attachment: Attachment[Any, Any]) -> Any:
        told: dict[str, Any] = {
            "max_age": duration.to_proto(attachment.max_age),
            "replica": self.name,
            "capacity": self.attachments.capacity(),
        }
        if self.engine is Engine.SCORE:
            stands = score_pb2.DenoiseAttached(
                spec=spec_to_proto(SPEC), checkpoint=SCORE_CHECKPOINT, tail=_tail(), **told
            )
            return score_pb2.DenoiseResponse(attached=stands)
        return vae_pb2.DecodeResponse(
            attached=vae_pb2.DecodeAttached(
                checkpoint=VAE_CHECKPOINT, tail_latents=_TAIL_LATENTS, **told
            )
        )

    def describe(self) -> Any:
        capacity = self.attachments.capacity()
        if self.engine is Engine.SCORE:
            return score_pb2.ScoreServiceDescribeResponse(
                checkpoint=SCORE_CHECKPOINT,
                spec=spec_to_proto(SPEC),
                latent_shape=(1, 1, 2, 2),
                max_speakers=1,
                tail=_tail(),
                capacity=capacity,
                replica=self.name,
            )
        return vae_pb2.VaeServiceDescribeResponse(
            checkpoint=VAE_CHECKPOINT,
            latent_channels=1,
            spatial_stride=8,
            frames_per_latent=SPEC.frames_per_latent,
            tail_latents=_TAIL_LATENTS,
            capacity=capacity,
            replica=self.name,
        )


class Pool:
    """All replicas of one kind that new streams may go to."""

    def __init__(self, engine: Engine, *, proxies: int) -> None:
        self.engine = engine
        self.replicas: list[Replica] = []
        self.proxies = [Proxy(self) for _ in range(proxies)]


class Proxy:
    """One of Serve's proxies: picks a replica by what it remembers of their queues."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[Replica, tuple[int, float]] = {}
        self.waits = 0

    async def pick(self) -> Replica:
        backoff = _FIRST_BACKOFF
        while True:
            if (found := self._pick()) is not None:
                return found
            self.waits += 1
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF)

    def ended(self, replica: Replica) -> None:
        """A stream that was sent there is over."""
        if (known := self._known.get(replica)) is not None:
            self._known[replica] = (max(0, known[0] - 1), known[1])

    def _pick(self) -> Replica | None:
        some = self._pool.replicas
        if not some:
            return None
        now = asyncio.get_running_loop().time()
        pair = random.sample(some, 2) if len(some) > 1 else some
        chosen = min(pair, key=lambda replica: self._length(replica, now))
        if chosen.running >= chosen.most:  # it refuses, and says how long its queue is
            self._known[chosen] = (chosen.running, now)
            return None
        self._known[chosen] = (self._length(chosen, now) + 1, now)
        return chosen

    def _length(self, replica: Replica, now: float) -> int:
        known = self._known.get(replica)
        if known is not None and now - known[1] <= _REMEMBERED_SECONDS:
            return known[0]
        return replica.running


class StreamCall:
    """A stream from one gateway to one replica."""

    def __init__(self, channel: Channel, requests: AsyncIterator[Any]) -> None:
        self._channel = channel
        self._requests = requests
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        self._replica: Replica | None = None
        self._lost = False
        self._task = asyncio.create_task(self._run())

    def __aiter__(self) -> StreamCall:
        return self

    async def __anext__(self) -> Any:
        reply = await self._replies.get()
        if isinstance(reply, TalkingMachinesError):
            raise reply
        if reply is None:
            raise StopAsyncIteration
        return reply

    def cancel(self) -> bool:
        # Nobody hears what a gateway does whose machine is gone.
        return not self._channel.silent and self._task.cancel()

    def lose(self, *, silent: bool) -> None:
        """The replica is gone."""
        self._lost = True
        self._task.cancel()
        if not silent:
            self._replies.put_nowait(Unavailable("the replica was killed", retry_after=0.0))

    async def _run(self) -> None:
        replica = await self._channel.proxy.pick()
        if replica.silent:  # the ingress has not noticed yet
            await asyncio.Event().wait()
        replica.calls.add(self)
        try:
            async for reply in replica.serve(self._sent()):
                self._replies.put_nowait(reply)
            self._replies.put_nowait(None)
        except TalkingMachinesError as error:
            self._replies.put_nowait(error)
        except asyncio.CancelledError:
            if not self._lost:
                self._replies.put_nowait(Unavailable("cancelled", retry_after=0.0))
        finally:
            replica.calls.discard(self)
            self._channel.proxy.ended(replica)

    async def _sent(self) -> AsyncIterator[Any]:
        async for request in self._requests:
            if self._channel.silent:
                break
            yield request
        if self._channel.silent:
            await asyncio.Event().wait()


class Channel:
    """One gateway's connection to one kind of engine, as the generated stubs use it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.proxy = random.choice(pool.proxies)
        self.silent = False  # the gateway's machine is gone without a word

    def stream_stream(self, path: str, **_: Any) -> Callable[[AsyncIterator[Any]], StreamCall]:
        del path  # each service has one stream
        return lambda requests: StreamCall(self, requests)

    def unary_unary(self, path: str, **_: Any) -> Any:
        return self._describe if path.endswith("/Describe") else None

    async def _describe(self, request: Any, timeout: float | None = None) -> Any:
        del request
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                replica = await self.proxy.pick()
                if replica.silent:
                    await asyncio.Event().wait()
                return replica.describe()
        raise Unavailable("nobody answers", retry_after=1.0)


def _tail() -> score_pb2.LogTailLength:
    return score_pb2.LogTailLength(latent_chunks=1, speech_chunks=2)
