"""`python -m services.score`: one replica on a gRPC server of its own, until it is told to stop.

For machines without Ray; a fleet runs `services.score.app`.
"""

from __future__ import annotations

from functools import partial

from services.runtime.hosting import on_own_server
from services.runtime.program import run
from services.runtime.weights import BadCheckpoint
from services.score.replica import NAME, replica
from services.score.settings import Settings
from talkingmachines.v1.score_pb2_grpc import add_ScoreServiceServicer_to_server


async def _serve(settings: Settings) -> None:
    await on_own_server(
        "score",
        NAME,
        add_ScoreServiceServicer_to_server,
        partial(replica, settings),
        listen=settings.listen,
        telemetry=settings.telemetry,
    )


def main() -> None:
    run("score", Settings, _serve, BadCheckpoint)


if __name__ == "__main__":
    main()
