"""The generated stubs and servicers of our contracts, on the runtime at both ends."""

from collections.abc import AsyncIterator
from functools import partial

import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from services.runtime.channel import open_channel
from services.runtime.drain import Drain
from services.runtime.metrics import RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Listen, Peer, Telemetry
from services.runtime.tracing import Tracing
from talkingmachines.errors import BadInput
from talkingmachines.v1 import vae_pb2, vae_pb2_grpc

NAME = vae_pb2.DESCRIPTOR.services_by_name["VaeService"].full_name


class Decoding(vae_pb2_grpc.VaeServiceServicer):
    async def Describe(
        self, request: vae_pb2.VaeServiceDescribeRequest, context: object
    ) -> vae_pb2.VaeServiceDescribeResponse:
        return vae_pb2.VaeServiceDescribeResponse()

    async def Encode(
        self, request: vae_pb2.EncodeRequest, context: object
    ) -> vae_pb2.EncodeResponse:
        raise BadInput("image", got="nothing", expected="a picture")

    async def Decode(
        self, request_iterator: AsyncIterator[vae_pb2.DecodeRequest], context: object
    ) -> AsyncIterator[vae_pb2.DecodeResponse]:
        first = await anext(request_iterator)
        if not first.HasField("attach"):
            raise BadInput("attach", got="nothing", expected="the first message")
        yield vae_pb2.DecodeResponse()


async def test_a_contract_s_service_end_to_end() -> None:
    registry = CollectorRegistry()
    with Tracing("vae", Telemetry()) as tracing:
        server = Server(
            Listen(notice_seconds=0, reflection=True),
            [Service(NAME, partial(vae_pb2_grpc.add_VaeServiceServicer_to_server, Decoding()))],
            drain=Drain(1.0),
            metrics=RpcMetrics(registry),
            tracing=tracing,
            checks={},
        )
        async with (
            server,
            open_channel(Peer(address=f"localhost:{server.port}")) as channel,
        ):
            stub = vae_pb2_grpc.VaeServiceStub(channel)
            call = stub.Decode(iter([vae_pb2.DecodeRequest()]))
            with pytest.raises(BadInput, match="attach: expected the first message"):
                await call.read()
            attach = vae_pb2.DecodeRequest(attach={})  # type: ignore[arg-type]
            assert [reply async for reply in stub.Decode(iter([attach]))] == [
                vae_pb2.DecodeResponse()
            ]
            assert await stub.Describe(vae_pb2.VaeServiceDescribeRequest()) is not None
            with pytest.raises(BadInput, match="image: expected a picture"):
                await stub.Encode(vae_pb2.EncodeRequest())
            assert registry.get_sample_value(
                "tm_rpc_handled_total", {"method": f"/{NAME}/Decode", "code": "INVALID_ARGUMENT"}
            )
            await described(channel)


async def described(channel: object) -> None:
    """Reflection gives the contract's file to whoever asks for the service by name."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME)
    call = stub.ServerReflectionInfo(iter([ask]))  # type: ignore[operator]
    answer = await call.read()
    files = answer.file_descriptor_response.file_descriptor_proto
    assert any(b"talkingmachines/v1/vae.proto" in file for file in files)
    call.cancel()
