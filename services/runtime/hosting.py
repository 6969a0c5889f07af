"""Where a replica of an engine lives: on a gRPC server of its own, or behind somebody's ingress.

Above a service's `replica.py`, which makes the replica; the same for score and VAE.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc
from prometheus_client import CollectorRegistry

from services.runtime import logs
from services.runtime.attachments import Terms
from services.runtime.drain import Drain
from services.runtime.endpoint import Check
from services.runtime.ingress import Ingress
from services.runtime.metrics import RpcMetrics
from services.runtime.rpc import Rpcs
from services.runtime.server import Server, Service, serve
from services.runtime.settings import Listen, Telemetry
from services.runtime.tracing import Tracing


class Hosted(Protocol):
    """A replica that serves."""

    @property
    def servicer(self) -> Any: ...
    @property
    def unhealthy(self) -> Check: ...


H_co = TypeVar("H_co", bound=Hosted, covariant=True)
H = TypeVar("H", bound=Hosted)


class Make(Protocol[H_co]):
    """Makes the replica, which serves while entered."""

    def __call__(
        self, *, drain: Drain, registry: CollectorRegistry, tracing: Tracing
    ) -> AbstractAsyncContextManager[H_co]: ...


async def on_own_server(
    name: str,
    service: str,
    add: Callable[[Any, grpc.aio.Server], None],
    make: Make[Hosted],
    *,
    listen: Listen,
    telemetry: Telemetry,
) -> None:
    """Serve until told to stop.

    Args:
        name: of the engine, in traces.
        service, add: full name in the contracts, and what puts its servicer onto a server.
    """
    drain, registry = Drain(listen.drain_seconds), CollectorRegistry()
    with Tracing(name, telemetry) as tracing:
        async with make(drain=drain, registry=registry, tracing=tracing) as made:
            server = Server(
                listen,
                [Service(service, partial(add, made.servicer))],
                drain=drain,
                metrics=RpcMetrics(registry),
                tracing=tracing,
                checks={"engine": made.unhealthy},
            )
            await serve(server)


@asynccontextmanager
async def behind_ingress(
    name: str,
    service: str,
    make: Make[H],
    *,
    terms: Terms,
    telemetry: Telemetry,
    unary_deadline_seconds: float,
) -> AsyncGenerator[tuple[H, Ingress], None]:
    """The replica, and what runs its servicer's methods, while entered.

    Args:
        name: of the engine, in logs and traces.
        service: full name in the contracts.
    """
    logs.configure(name, level=telemetry.log_level)
    drain, registry = Drain(terms.longest_seconds), CollectorRegistry()
    with Tracing(name, telemetry) as tracing:
        async with make(drain=drain, registry=registry, tracing=tracing) as made:
            rpcs = Rpcs(
                drain=drain,
                metrics=RpcMetrics(registry),
                tracing=tracing,
                unary_deadline_seconds=unary_deadline_seconds,
            )
            yield made, Ingress(service, rpcs, drain=drain)
