"""Score under Ray Serve: `import_path: services.score.app:app`, its `args` are the settings.

Above `replica.py`; the only file of the service that knows Ray. Serve's own gRPC ingress brings
streams to replicas: one stream is one attachment. One replica is one group of ranks in one
placement group: rank 0 in the replica itself, every other rank in an actor of its own.

The ingress needs to be told of the contract when Serve starts:

    grpc_options:
      grpc_servicer_functions:
        - talkingmachines.v1.score_pb2_grpc.add_ScoreServiceServicer_to_server

and callers name the application in the metadata, `application: score`, where there are several.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from services.runtime import logs
from services.runtime.hosting import behind_ingress
from services.runtime.ingress import IngressContext
from services.runtime.replicas import deployment
from services.runtime.settings import read
from services.score.replica import NAME, replica
from services.score.settings import Settings
from services.score.team import Meeting, free_address, serve_rank
from talkingmachines.v1 import score_pb2

_HERE = "127.0.0.1"  # all ranks of a replica are on one machine


def app(args: Mapping[str, Any]) -> Application:
    """The application, from the arguments of a Serve config and the environment.

    Raises:
        BadSettings: with every mistake in them.
    """
    return deployed(read(Settings, args))


def deployed(settings: Settings) -> Application:
    """The application with these settings."""
    options = deployment(settings.replicas, settings.terms, slots=settings.sessions)
    placed = serve.deployment(
        name="score",
        placement_group_bundles=[settings.replicas.process] * settings.ranks,
        placement_group_strategy="STRICT_PACK",  # ranks exchange activations in every layer
        **options,
    )(ScoreReplica)
    return placed.bind(settings)


class ScoreReplica:
    """One replica: what Serve calls."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        self._stack = AsyncExitStack()
        hosted = behind_ingress(
            "score",
            NAME,
            partial(
                replica,
                settings,
                meeting=self._gather(settings),
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
        self, request: score_pb2.ScoreServiceDescribeRequest, grpc_context: IngressContext
    ) -> score_pb2.ScoreServiceDescribeResponse:
        return await self._ingress.unary(self._replica.servicer.Describe, request, grpc_context)

    async def Condition(  # noqa: N802
        self, request: score_pb2.ConditionRequest, grpc_context: IngressContext
    ) -> score_pb2.ConditionResponse:
        return await self._ingress.unary(self._replica.servicer.Condition, request, grpc_context)

    async def Denoise(  # noqa: N802
        self, requests: AsyncIterator[score_pb2.DenoiseRequest], grpc_context: IngressContext
    ) -> AsyncGenerator[score_pb2.DenoiseResponse, None]:
        denoise = self._replica.servicer.Denoise
        async for response in self._ingress.stream(denoise, requests, grpc_context):
            yield response

    def _gather(self, settings: Settings) -> Meeting | None:
        """Start the other ranks, if there are any; where this one meets them."""
        if settings.ranks == 1:
            return None
        address, group = free_address(_HERE), get_current_placement_group()
        assert group is not None, "a replica has a placement group"
        for rank in range(1, settings.ranks):
            actor = _Rank.options(  # type: ignore[attr-defined]
                num_cpus=settings.replicas.cpus,
                num_gpus=settings.replicas.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group,
                    placement_group_bundle_index=rank,
                ),
            ).remote()
            self._stack.callback(ray.kill, actor)
            actor.serve.remote(settings, Meeting(address, rank, settings.ranks))
        return Meeting(address, 0, settings.ranks)


@ray.remote
class _Rank:
    """A process for one more rank; it ends with the replica that started it."""

    def serve(self, settings: Settings, meeting: Meeting) -> None:
        logs.configure("score", level=settings.telemetry.log_level)
        serve_rank(settings, meeting)
