"""The VAE under a real Ray Serve: the same frames, hand-overs, the loss of a replica, the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from services.runtime.attachments import Terms
from services.runtime.channel import open_channel
from services.runtime.replicas import Replicas
from services.runtime.settings import BadSettings, Endpoint, Peer
from services.vae.app import app, deployed
from talkingmachines.errors import BadInput, TalkingMachinesError
from talkingmachines.picture import Codec
from talkingmachines.v1 import media_pb2, vae_pb2
from talkingmachines.v1.vae_pb2_grpc import VaeServiceStub
from tests.ray_cluster import cluster
from tests.vae import served
from tests.vae.served import Call, Caller, encoded, keys, raw, shown

pytestmark = pytest.mark.timeout(300)  # half a minute when alone on the machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.write_checkpoint(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with cluster(["vae"]) as where:
        settings = served.settings(
            folder,
            replicas=Replicas(least=2, most=2, cpus=0.1),
            terms=Terms(max_age_seconds=20, time_left_seconds=5),
            endpoint=Endpoint(port=19_440, ports=50),
        )
        serve.run(deployed(settings), name="vae", route_prefix="/vae")
        yield where


async def test_frames_survive_the_loss_of_their_replica(address: str, folder: Path) -> None:
    async with served.serving(served.settings(folder)) as here:
        expected = raw(await (await Caller(here.stub, Call()).attach()).decode(5))
    async with open_channel(Peer(address=address), metadata=(("application", "vae"),)) as channel:
        stub: Any = VaeServiceStub(channel)
        made = await stub.Encode(vae_pb2.EncodeRequest(image=served.image()))
        assert list(made.anchor.shape) == [4, 1, 4, 4]
        ada = await Caller(stub, Call()).attach()
        got = [raw(await ada.decode(2))]
        bea = await Caller(stub, Call(1), encoded(Codec.H264)).attach()
        packets = await bea.decode()
        assert keys(packets) == [0]
        assert len(shown(packets)) == len(packets)
        assert ada.attached is not None
        kill(ada.attached.replica)
        with pytest.raises(TalkingMachinesError):
            await ada.next()
        again = await attached_again(stub, ada.call)
        assert again.attached is not None
        assert again.attached.replica != ada.attached.replica
        got.append(raw(await again.decode(3)))
        assert np.array_equal(np.concatenate(got), expected)
        # Errors keep their type and their field through Serve's proxy.
        again.send(settings=media_pb2.VideoSettings(quality=50))
        with pytest.raises(BadInput) as refused:
            await again.next()
        assert refused.value.field == "settings"


async def attached_again(stub: Any, call: Call) -> Caller:
    """As a gateway does it: at once, and again while it is refused."""
    while True:
        try:
            return await Caller(stub, call).attach()
        except TalkingMachinesError:
            await asyncio.sleep(0.1)


async def test_a_replica_is_asked_to_leave_and_the_session_goes_on(address: str) -> None:
    """Through an application that is taken down: streams may end by themselves."""
    async with open_channel(Peer(address=address), metadata=(("application", "vae"),)) as channel:
        stub: Any = VaeServiceStub(channel)
        ada = await Caller(stub, Call()).attach()
        deleting = asyncio.create_task(asyncio.to_thread(serve.delete, "vae"))
        await ada.decode(3)
        ada.half_close()
        with pytest.raises(StopAsyncIteration):
            await ada.next()
        await deleting


def test_mistakes_in_its_arguments_are_told_together() -> None:
    with pytest.raises(BadSettings) as told:
        app({"model": "/nowhere", "sessions": 0, "encoding": {"quality": 1000}, "nonsense": 1})
    assert len(told.value.mistakes) == 3


def kill(replica: str) -> None:
    """As the kernel would."""
    ray.kill(ray.get_actor(f"SERVE_REPLICA::vae#vae#{replica}", namespace="serve"))
