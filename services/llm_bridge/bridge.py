"""The bridge, put together: settings in, a running server out.

`__main__` runs one for ever; the fleet on one machine and the tests run some within a process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

from prometheus_client import CollectorRegistry

from services.llm_bridge.installed import check
from services.llm_bridge.persona import Patience
from services.llm_bridge.servicer import LlmBridgeServicer
from services.llm_bridge.settings import Settings
from services.llm_bridge.speech_model import SpeechModel
from services.runtime.drain import Drain
from services.runtime.endpoint import HttpEndpoint
from services.runtime.metrics import BridgeMetrics, RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.token import FleetToken
from services.runtime.tracing import Tracing
from talkingmachines.v1.llm_bridge_pb2 import DESCRIPTOR
from talkingmachines.v1.llm_bridge_pb2_grpc import add_LlmBridgeServiceServicer_to_server

NAME = DESCRIPTOR.services_by_name["LlmBridgeService"].full_name


@asynccontextmanager
async def bridge(
    settings: Settings, *, drain: Drain, registry: CollectorRegistry
) -> AsyncIterator[Server]:
    """A bridge that serves while entered, and drains when left.

    Raises:
        NotInstalled: something that the settings ask for is missing.
    """
    check(settings)
    metrics = BridgeMetrics(registry)
    async with AsyncExitStack() as stack:
        tracing = stack.enter_context(Tracing("bridge", settings.telemetry))
        model = await stack.enter_async_context(_model(settings, metrics))
        turns = settings.turns
        servicer = LlmBridgeServicer(
            model,
            Patience(turns.end_silence, turns.min_interruption, turns.silence_timeout),
            drain,
            metrics,
            token=FleetToken(settings.token_file),
            most=settings.conversations,
        )
        checks = {"speech model": model.wrong}
        server = Server(
            settings.listen,
            [Service(NAME, partial(add_LlmBridgeServiceServicer_to_server, servicer))],
            drain=drain,
            metrics=RpcMetrics(registry),
            tracing=tracing,
            checks=checks,
        )
        endpoint = HttpEndpoint(settings.endpoint, registry=registry, checks=checks)
        await stack.enter_async_context(endpoint)
        yield await stack.enter_async_context(server)


def _model(settings: Settings, metrics: BridgeMetrics) -> AbstractAsyncContextManager[SpeechModel]:
    # Imported where it is chosen: the parts of one model are not needed for the other.
    if settings.realtime is not None:
        from services.llm_bridge.realtime.model import realtime_model

        return realtime_model(settings.realtime, metrics)
    from services.llm_bridge.local.model import local_model

    return local_model(settings.local, metrics)
