"""A score replica under a real Ray Serve, reached through its gRPC ingress."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from ray import serve
from torch import Tensor

from services.runtime.attachments import Terms
from services.runtime.channel import open_channel
from services.runtime.settings import Peer
from services.score.app import app, deployed
from services.score.settings import Settings
from talkingmachines.channel import DomainChannel
from talkingmachines.errors import BadInput, EngineFailure, TalkingMachinesError
from talkingmachines.v1 import score_pb2
from talkingmachines.v1.score_pb2_grpc import ScoreServiceStub
from tests import ray_cluster
from tests.score import served, small
from tests.score.calls import Call
from tests.score.served import Caller

CONFIG = small.config()

pytestmark = pytest.mark.timeout(300)  # Ray starts half a dozen processes


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_cluster.cluster(["score"]) as address:
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.write_checkpoint(tmp_path_factory.mktemp("score"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> Tensor:
    engine, call = served.engine(folder), Call(CONFIG)
    call.open(engine)
    return call.draw(engine, 8).float()


def channel(address: str) -> DomainChannel:
    return open_channel(Peer(address=address), metadata=(("application", "score"),))


async def describe(stub: Any) -> score_pb2.ScoreServiceDescribeResponse:
    answer = await stub.Describe(score_pb2.ScoreServiceDescribeRequest())
    assert isinstance(answer, score_pb2.ScoreServiceDescribeResponse)
    return answer


def deploy(settings: Settings) -> None:
    serve.run(deployed(settings), name="score", route_prefix="/score")


async def attach_again(stub: Any, call: Call) -> Caller:
    """As a gateway does after a loss: until somebody takes it."""
    async with asyncio.timeout(60):
        while True:
            try:
                checkpoint = (await describe(stub)).checkpoint
                return await Caller(stub, call, checkpoint).attach()
            except TalkingMachinesError:
                await asyncio.sleep(0.2)


async def test_sessions_are_drawn_handed_over_refused_and_outlive_their_replica(
    address: str, folder: Path, expected: Tensor
) -> None:
    """One deployment, because each takes seconds; in the order in which things get worse."""
    deploy(served.settings(folder))
    async with channel(address) as there:
        stub: Any = ScoreServiceStub(there)
        loaded = await describe(stub)
        ada = await Caller(stub, Call(CONFIG), loaded.checkpoint).attach()
        assert torch.equal(await ada.draw(3), expected[:3])

        ada.ask(99)
        with pytest.raises(BadInput) as refused:
            await ada.next()
        assert (refused.value.field, refused.value.got) == ("chunk.chunk", "99")
        with pytest.raises(BadInput, match="image"):
            await stub.Condition(score_pb2.ConditionRequest())

        vanishing = await Caller(stub, Call(CONFIG, "grace"), loaded.checkpoint).attach()
        vanishing.ask()
        vanishing.rpc.cancel()
        async with asyncio.timeout(served.WAIT):
            while (await describe(stub)).capacity.sessions:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

        again = await Caller(stub, ada.call, loaded.checkpoint).attach()
        assert torch.equal(await again.draw(2), expected[3:5])
        again.ask()
        struck = monotonic()
        os.kill(_replica_process(), signal.SIGKILL)
        with pytest.raises(TalkingMachinesError):
            await again.read_all()
        assert monotonic() - struck < 5
        mended = await attach_again(stub, ada.call)
        print(f"attached again {monotonic() - struck:.1f} s after the replica was killed")
        assert torch.equal(await mended.draw(3), expected[5:])


async def test_two_ranks_draw_the_same_and_one_that_dies_is_replaced(
    address: str, folder: Path, expected: Tensor
) -> None:
    deploy(served.settings(folder, ranks=2))
    async with channel(address) as there:
        stub: Any = ScoreServiceStub(there)
        ada = await attach_again(stub, Call(CONFIG))
        drawn = await ada.draw(4)
        assert (drawn - expected[:4]).abs().max() < 1e-2 * expected.abs().max()
        struck = monotonic()
        os.kill(_rank_process(), signal.SIGKILL)
        with pytest.raises(EngineFailure, match="rank"):
            await ada.draw(1000)
        mended = await attach_again(stub, Call(CONFIG))
        print(f"attached again {monotonic() - struck:.1f} s after a rank was killed")
        assert (await mended.draw()).isfinite().all()


def test_an_application_is_built_from_arguments(folder: Path) -> None:
    built = app({"model": str(folder), "sessions": 5, "terms": {"headroom": 2}})
    config = built._bound_deployment._deployment_config
    assert config.max_ongoing_requests == 5 + 2 + 4
    assert config.graceful_shutdown_timeout_s > Terms().longest_seconds


def _replica_process() -> int:
    return _process("ServeReplica:score:score")


def _rank_process() -> int:
    return _process("ray::_Rank")


def _process(title: str) -> int:
    """The one process of this machine's tests with such a title, started by our Ray."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if title in line and _ours(folder):
            found.append(int(folder.name))
    assert len(found) == 1, f"{title}: {found}"
    return found[0]


def _ours(folder: Path) -> bool:
    """Whether a process belongs to the Ray that this process started."""
    environment = (folder / "environ").read_bytes().decode(errors="replace")
    return f"RAY_TEST_OWNER={os.getpid()}" in environment
