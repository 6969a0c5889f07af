"""`python -m services.vae`: one replica on a gRPC server of its own, until it is told to stop.

For machines without Ray; a fleet runs `services.vae.app`.
"""

from __future__ import annotations

from functools import partial

from services.runtime.hosting import on_own_server
from services.runtime.program import run
from services.runtime.weights import BadCheckpoint
from services.vae.replica import NAME, replica
from services.vae.settings import Settings
from talkingmachines.errors import BadInput
from talkingmachines.v1.vae_pb2_grpc import add_VaeServiceServicer_to_server


async def _serve(settings: Settings) -> None:
    await on_own_server(
        "vae",
        NAME,
        add_VaeServiceServicer_to_server,
        partial(replica, settings),
        listen=settings.listen,
        telemetry=settings.telemetry,
    )


def main() -> None:
    run("vae", Settings, _serve, BadCheckpoint, BadInput)


if __name__ == "__main__":
    main()
