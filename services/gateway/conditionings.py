"""What engines must know of characters, read once for all sessions that want it.

Beside the path: avatars → **conditionings** → blobs. Megabytes for each character, and named by
what they hold, so what was read is never out of date. When a crowd calls one character, or the
sessions of a lost gateway come here together, the storage is asked once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from services.gateway.blobs import Blobs
from talkingmachines.v1 import score_pb2

_KIND = "conditionings"
_MOST_BYTES = 256 * 1024 * 1024  # kept, besides those that sessions hold
_KEPT_SECONDS = 600.0

_Key = tuple[str, str]  # tenant, digest


@dataclass(frozen=True, slots=True)
class _Kept:
    conditioning: score_pb2.Conditioning
    size: int  # bytes, as stored
    until: float  # loop time


class Conditionings:
    """The newest ones; nobody changes what is given out.

    Args:
        most_bytes: that are kept for those who come later, as stored.
        seconds: for which one is kept: what other gateways deleted does not stay here for ever.
    """

    def __init__(
        self, blobs: Blobs, *, most_bytes: int = _MOST_BYTES, seconds: float = _KEPT_SECONDS
    ) -> None:
        self._blobs = blobs
        self._most = most_bytes
        self._seconds = seconds
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()  # the last one used comes last
        self._reading: dict[_Key, asyncio.Task[score_pb2.Conditioning]] = {}

    async def get(self, tenant: str, digest: str) -> score_pb2.Conditioning:
        """What was stored under `digest`.

        Raises:
            NotFound: nothing was, or it was deleted.
            Unavailable: the storage does not answer.
        """
        key = tenant, digest
        self._drop_old()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key].conditioning
        if key not in self._reading:
            self._reading[key] = asyncio.create_task(self._read(key))
            self._reading[key].add_done_callback(partial(self._was_read, key))
        # Whoever began to read may leave; the others wait for it still.
        return await asyncio.shield(self._reading[key])

    async def put(self, tenant: str, conditioning: score_pb2.Conditioning) -> str:
        """Store it; returns its digest."""
        blob = conditioning.SerializeToString(deterministic=True)
        return await self._blobs.put(tenant, _KIND, blob)

    async def delete(self, tenant: str, digest: str) -> None:
        await self._blobs.delete(tenant, _KIND, digest)
        self._kept.pop((tenant, digest), None)

    async def _read(self, key: _Key) -> score_pb2.Conditioning:
        tenant, digest = key
        blob = await self._blobs.get(tenant, _KIND, digest)
        return score_pb2.Conditioning.FromString(blob)

    def _was_read(self, key: _Key, reading: asyncio.Task[score_pb2.Conditioning]) -> None:
        del self._reading[key]
        if reading.cancelled() or reading.exception() is not None:
            return  # whoever waits is told
        conditioning = reading.result()
        until = asyncio.get_running_loop().time() + self._seconds
        self._kept[key] = _Kept(conditioning, conditioning.ByteSize(), until)
        while sum(kept.size for kept in self._kept.values()) > self._most:
            self._kept.popitem(last=False)

    def _drop_old(self) -> None:
        now = asyncio.get_running_loop().time()
        for key in [key for key, kept in self._kept.items() if kept.until <= now]:
            del self._kept[key]
