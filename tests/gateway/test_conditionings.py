"""The storage is asked once for what many sessions want, and never for long believed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.gateway.blobs import Blobs
from services.gateway.conditionings import Conditionings
from talkingmachines.errors import NotFound
from talkingmachines.v1 import media_pb2, score_pb2

ADA = score_pb2.Conditioning(checkpoint="ada", anchor=media_pb2.Tensor(payload=bytes(1_000)))
BEN = score_pb2.Conditioning(checkpoint="ben", anchor=media_pb2.Tensor(payload=bytes(1_000)))


class Counted(Blobs):
    """Counts what is read, and takes its time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.as_uri())
        self.reads = 0

    async def get(self, tenant: str, kind: str, digest: str) -> bytes:
        self.reads += 1
        await asyncio.sleep(0.02)
        return await super().get(tenant, kind, digest)

    async def keep(self, conditioning: score_pb2.Conditioning) -> str:
        return await self.put("t", "conditionings", conditioning.SerializeToString())


async def test_a_crowd_reads_a_character_once(tmp_path: Path) -> None:
    blobs = Counted(tmp_path)
    made, ada = Conditionings(blobs), await blobs.keep(ADA)
    impatient = asyncio.create_task(made.get("t", ada))
    crowd = [asyncio.create_task(made.get("t", ada)) for _ in range(50)]
    await asyncio.sleep(0.005)
    impatient.cancel()
    assert all(found == ADA for found in await asyncio.gather(*crowd))
    assert await made.get("t", ada) == ADA
    assert blobs.reads == 1


async def test_another_tenant_reads_its_own(tmp_path: Path) -> None:
    blobs = Counted(tmp_path)
    made, ada = Conditionings(blobs), await blobs.keep(ADA)
    await made.get("t", ada)
    with pytest.raises(NotFound):
        await made.get("u", ada)


async def test_what_could_not_be_read_is_asked_for_again(tmp_path: Path) -> None:
    blobs = Counted(tmp_path)
    made, ada = Conditionings(blobs), await blobs.keep(ADA)
    await blobs.delete("t", "conditionings", ada)
    both = await asyncio.gather(*(made.get("t", ada) for _ in "ab"), return_exceptions=True)
    assert all(isinstance(error, NotFound) for error in both)
    await blobs.keep(ADA)
    assert await made.get("t", ada) == ADA


async def test_what_was_deleted_or_is_old_or_one_too_many_is_read_again(tmp_path: Path) -> None:
    blobs = Counted(tmp_path)
    ada, ben = await blobs.keep(ADA), await blobs.keep(BEN)
    small = Conditionings(blobs, most_bytes=1_500)
    for digest in (ada, ada, ben, ben, ada):
        await small.get("t", digest)
    assert blobs.reads == 3
    await small.delete("t", ada)
    await blobs.keep(ADA)
    await small.get("t", ada)
    assert blobs.reads == 4
    short = Conditionings(blobs, seconds=0.05)
    await short.get("t", ada)
    await asyncio.sleep(0.06)
    await short.get("t", ada)
    assert blobs.reads == 6
