"""`python -m services.vae`: one replica on a gRPC server of its own, until it is told to stop.

For machines without Ray; a fleet runs `services.vae.app`.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from prometheus_client import CollectorRegistry

from services.runtime import logs
from services.runtime.drain import Drain
from services.runtime.metrics import RpcMetrics
from services.runtime.server import CannotListen, Server, Service, serve
from services.runtime.settings import BadSettings, read
from services.runtime.tracing import Tracing
from services.runtime.weights import BadCheckpoint
from services.vae.replica import NAME, replica
from services.vae.settings import Settings
from talkingmachines.errors import BadInput
from talkingmachines.v1.vae_pb2_grpc import add_VaeServiceServicer_to_server


async def _run(settings: Settings) -> None:
    drain, registry = Drain(settings.listen.drain_seconds), CollectorRegistry()
    with Tracing("vae", settings.telemetry) as tracing:
        async with replica(settings, drain=drain, registry=registry, tracing=tracing) as made:
            add = partial(add_VaeServiceServicer_to_server, made.servicer)
            server = Server(
                settings.listen,
                [Service(NAME, add)],
                drain=drain,
                metrics=RpcMetrics(registry),
                tracing=tracing,
                checks={"engine": made.unhealthy},
            )
            await serve(server)


def main() -> None:
    try:
        settings = read(Settings)
        logs.configure("vae", level=settings.telemetry.log_level)
        asyncio.run(_run(settings))
    except (BadSettings, BadCheckpoint, BadInput, CannotListen) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
