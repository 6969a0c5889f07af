"""A channel that is opened anew now and then, so that calls go where its name leads today.

On the path: gateway → **renewal** → channel → wire. gRPC looks a name up again when a connection
breaks, not when the name comes to mean other machines; and whoever moves a name (an upgrade that
starts a second cluster beside the first) leaves the first one running for a while. A connection
that stands would lead there until it is torn down, with every stream on it. So the next connection
is made before the last is left: new calls use the new one, calls that run end where they are, and
a channel without calls is closed.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Self

import grpc

from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from talkingmachines.channel import DomainChannel, Metadata, Options

_READY_SECONDS = 10.0  # for a new connection to stand; else the old one stays
_PAUSE_SECONDS = 5.0  # between two renewals at least, however many calls fail
# What says that a connection may lead to the wrong place: nobody is there, or nobody of that name.
_DOUBTFUL = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)
_OPTIONS: Options = [
    # All addresses of a name, in turn: by itself gRPC takes the first that answers, and so do all
    # other callers.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # Channels to the same address share connections otherwise, so a new one would be the old one.
    ("grpc.use_local_subchannel_pool", 1),
]


@asynccontextmanager
async def renewed_channel(peer: Peer, *, metadata: Metadata = ()) -> AsyncIterator[RenewedChannel]:
    """A channel to `peer`, opened anew every `peer.renew_seconds`, while entered."""
    channel = RenewedChannel(
        lambda: open_channel(peer, metadata=metadata, options=_OPTIONS),
        every_seconds=peer.renew_seconds,
    )
    renewing = asyncio.create_task(channel.renew())
    try:
        yield channel
    finally:
        renewing.cancel()
        with suppress(asyncio.CancelledError):
            await renewing
        await channel.close()


class RenewedChannel(grpc.aio.Channel):
    """Every call begins on the newest connection.

    Args:
        open_one: makes a channel.
    """

    def __init__(self, open_one: Callable[[], DomainChannel], *, every_seconds: float) -> None:
        self._open = open_one
        self._every = every_seconds
        self._newest = _Opened(open_one())
        self._left: set[_Opened] = set()
        self._doubt = asyncio.Event()
        self.renewals = 0

    async def renew(self) -> None:
        """Open it anew whenever it is time, or calls find nobody."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every * random.uniform(0.8, 1.2)):
                    await self._doubt.wait()
            await self._renew()
            await asyncio.sleep(min(_PAUSE_SECONDS, self._every))
            self._doubt.clear()

    async def close(self, grace: float | None = None) -> None:
        """Close all connections; calls that run are ended."""
        for opened in [self._newest, *self._left]:
            await opened.channel.close(grace)

    async def _renew(self) -> None:
        new = _Opened(self._open())
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await new.channel.channel_ready()
        except TimeoutError:
            await new.channel.close()
            return
        except asyncio.CancelledError:
            await new.channel.close()
            raise
        old, self._newest = self._newest, new
        self._left.add(old)
        self.renewals += 1
        await self._close_idle()

    async def _close_idle(self) -> None:
        for opened in [opened for opened in self._left if not opened.calls]:
            self._left.discard(opened)
            await opened.channel.close()

    def _begin(self, method: Callable[[DomainChannel], Any], *args: Any, **kwargs: Any) -> Any:
        opened = self._newest
        call = method(opened.channel)(*args, **kwargs)
        opened.calls += 1

        def over(_: Any) -> None:
            opened.calls -= 1
            if call.ended_with in _DOUBTFUL and opened is self._newest:
                self._doubt.set()

        call.add_done_callback(over)
        return call

    # ---- What stubs ask of a channel ----

    def unary_unary(self, *method: Any, **serializers: Any) -> Any:
        return partial(self._begin, lambda it: it.unary_unary(*method, **serializers))

    def unary_stream(self, *method: Any, **serializers: Any) -> Any:
        return partial(self._begin, lambda it: it.unary_stream(*method, **serializers))

    def stream_unary(self, *method: Any, **serializers: Any) -> Any:
        return partial(self._begin, lambda it: it.stream_unary(*method, **serializers))

    def stream_stream(self, *method: Any, **serializers: Any) -> Any:
        return partial(self._begin, lambda it: it.stream_stream(*method, **serializers))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._newest.channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._newest.channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._newest.channel.channel_ready()


class _Opened:
    """A connection, and the calls that run on it."""

    def __init__(self, channel: DomainChannel) -> None:
        self.channel = channel
        self.calls = 0
