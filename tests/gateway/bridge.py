"""A real bridge over a model of known results, for gateways that are called in tests."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry

from services.llm_bridge.persona import Patience
from services.llm_bridge.servicer import LlmBridgeServicer
from services.runtime.drain import Drain
from services.runtime.metrics import BridgeMetrics, RpcMetrics
from services.runtime.server import Server, Service
from services.runtime.settings import Listen, Telemetry
from services.runtime.token import FleetToken
from services.runtime.tracing import Tracing
from talkingmachines.v1.llm_bridge_pb2_grpc import add_LlmBridgeServiceServicer_to_server
from tests.fakes.speech_parts import Model


def bridge_server(model: Model, metrics: BridgeMetrics, *, end_silence: float) -> Server:
    """Serves on a free port while entered; asks nobody for a token.

    Args:
        end_silence: seconds after which a user has said what there was to say.
    """
    patience = Patience(end_silence=end_silence, silence_timeout=0)
    servicer = LlmBridgeServicer(
        model, patience, Drain(0), metrics, token=FleetToken(None), most=20
    )
    return Server(
        Listen(notice_seconds=0, drain_seconds=0),
        [Service("bridge", partial(add_LlmBridgeServiceServicer_to_server, servicer))],
        drain=Drain(0),
        metrics=RpcMetrics(CollectorRegistry()),
        tracing=Tracing("bridge", Telemetry()),
        checks={},
    )
