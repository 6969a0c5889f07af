"""The public service: requests in, replies out, nothing else.

On the path: client → **servicer** → calls, avatars.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from services.gateway.auth import Caller
from services.gateway.avatars import Avatars
from services.gateway.calls import Calls
from services.gateway.entrance import Entrance
from services.gateway.outbox import Item, Outbox, Room
from services.runtime.interceptor import Context
from services.runtime.metrics import GatewayMetrics, Transport
from talkingmachines.media import Pcm
from talkingmachines.picture import VideoFrame
from talkingmachines.v1 import avatar_pb2
from talkingmachines.v1.avatar_pb2_grpc import AvatarServiceServicer


@dataclass
class AvatarServicer(AvatarServiceServicer):
    """AvatarService, for callers that the entrance lets in."""

    entrance: Entrance
    avatars: Avatars
    calls: Calls
    metrics: GatewayMetrics
    room: Room

    async def CreateAvatar(
        self, request: avatar_pb2.CreateAvatarRequest, context: Context
    ) -> avatar_pb2.CreateAvatarResponse:
        caller = await self._enter(context)
        limits = caller.limits
        avatar = await self.avatars.create(
            caller.tenant, request, limits=limits.image, most=limits.avatars
        )
        return avatar_pb2.CreateAvatarResponse(avatar=avatar)

    async def GetAvatar(
        self, request: avatar_pb2.GetAvatarRequest, context: Context
    ) -> avatar_pb2.GetAvatarResponse:
        caller = await self._enter(context)
        avatar = await self.avatars.get(caller.tenant, request.avatar_id)
        return avatar_pb2.GetAvatarResponse(avatar=avatar)

    async def ListAvatars(
        self, request: avatar_pb2.ListAvatarsRequest, context: Context
    ) -> avatar_pb2.ListAvatarsResponse:
        caller = await self._enter(context)
        return await self.avatars.list(caller.tenant, request)

    async def DeleteAvatar(
        self, request: avatar_pb2.DeleteAvatarRequest, context: Context
    ) -> avatar_pb2.DeleteAvatarResponse:
        caller = await self._enter(context)
        await self.avatars.delete(caller.tenant, request.avatar_id)
        return avatar_pb2.DeleteAvatarResponse()

    async def Talk(
        self, request_iterator: AsyncIterator[avatar_pb2.TalkRequest], context: Context
    ) -> AsyncIterator[avatar_pb2.TalkResponse]:
        caller = await self._enter(context)
        outbox = Outbox(self.room)
        call = asyncio.create_task(self.calls.hold(caller, request_iterator, outbox))
        viewers = self.metrics.viewers.labels(Transport.GRPC)
        frames = self.metrics.frames.labels(Transport.GRPC)
        viewers.inc()
        try:
            with _cut_off_after(call, seconds=self.room.seconds):
                call.add_done_callback(lambda _: outbox.close())
                async for item in outbox:
                    if isinstance(item, VideoFrame):
                        frames.inc()
                    yield _message(item)
        finally:
            viewers.dec()
            await _end(call)

    async def _enter(self, context: Context) -> Caller:
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        return await self.entrance.enter(metadata)


def _message(item: Item) -> avatar_pb2.TalkResponse:
    message = avatar_pb2.TalkResponse()
    match item:
        case VideoFrame():
            item.put_into(message.frame)
        case Pcm():
            item.put_into(message.speech)
        case _:
            return item
    return message


@contextmanager
def _cut_off_after(call: asyncio.Task[None], *, seconds: float) -> Iterator[None]:
    """Cancel the running handler once `call` is over: at once if it failed, else after `seconds`.

    A client that does not read would leave the handler waiting to write for ever.
    """
    handler, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert handler is not None
    timers: list[asyncio.TimerHandle] = []

    def over(ended: asyncio.Task[None]) -> None:
        failed = not ended.cancelled() and ended.exception() is not None
        timers.append(loop.call_later(0.0 if failed else seconds, handler.cancel))

    call.add_done_callback(over)
    try:
        yield
    finally:
        call.remove_done_callback(over)
        for timer in timers:
            timer.cancel()


async def _end(call: asyncio.Task[None]) -> None:
    """End the call if it still runs; its own error, if it has one, is what its client is told."""
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
