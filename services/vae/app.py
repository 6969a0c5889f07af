"""The VAE under Ray Serve: `import_path: services.vae.app:app`, its `args` are the settings.

Above `replica.py`; the only file of the service that knows Ray. Serve's own gRPC ingress brings
streams to replicas: one stream is one attachment. The ingress needs to be told of the contract when
Serve starts:

    grpc_options:
      grpc_servicer_functions:
        - talkingmachines.v1.vae_pb2_grpc.add_VaeServiceServicer_to_server

and callers name the application in the metadata, `application: vae`, where there are several.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from ray import serve
from ray.serve import Application

from services.runtime.hosting import behind_ingress
from services.runtime.ingress import IngressContext
from services.runtime.replicas import deployment
from services.runtime.settings import read
from services.vae.replica import NAME, replica
from services.vae.settings import Settings
from talkingmachines.v1 import vae_pb2


def app(args: Mapping[str, Any]) -> Application:
    """The application, from the arguments of a Serve config and the environment.

    Raises:
        BadSettings: with every mistake in them.
    """
    return deployed(read(Settings, args))


def deployed(settings: Settings) -> Application:
    """The application with these settings."""
    options = deployment(settings.replicas, settings.terms, slots=settings.sessions)
    return serve.deployment(name="vae", **options)(VaeReplica).bind(settings)


class VaeReplica:
    """One replica: what Serve calls."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        self._stack = AsyncExitStack()
        hosted = behind_ingress(
            "vae",
            NAME,
            partial(
                replica,
                settings,
                name=serve.get_replica_context().replica_id.unique_id,
            ),
            terms=settings.terms,
            telemetry=settings.telemetry,
            unary_deadline_seconds=settings.unary_deadline_seconds,
        )
        self._replica, self._ingress = await self._stack.enter_async_context(hosted)

    async def __del__(self) -> None:
        """Serve awaits it when nothing is attached any more."""
        await self._stack.aclose()

    async def check_health(self) -> None:
        """Serve asks; what is raised counts as a failure."""
        if (wrong := self._replica.unhealthy()) is not None:
            raise RuntimeError(wrong)

    async def Describe(  # noqa: N802  the contract's name
        self, request: vae_pb2.VaeServiceDescribeRequest, grpc_context: IngressContext
    ) -> vae_pb2.VaeServiceDescribeResponse:
        return await self._ingress.unary(self._replica.servicer.Describe, request, grpc_context)

    async def Encode(  # noqa: N802
        self, request: vae_pb2.EncodeRequest, grpc_context: IngressContext
    ) -> vae_pb2.EncodeResponse:
        return await self._ingress.unary(self._replica.servicer.Encode, request, grpc_context)

    async def Decode(  # noqa: N802
        self, requests: AsyncIterator[vae_pb2.DecodeRequest], grpc_context: IngressContext
    ) -> AsyncGenerator[vae_pb2.DecodeResponse, None]:
        decode = self._replica.servicer.Decode
        async for response in self._ingress.stream(decode, requests, grpc_context):
            yield response
