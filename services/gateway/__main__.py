"""`python -m services.gateway`: one gateway, until it is told to stop."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from services.gateway.deletion_cost import CannotPublish
from services.gateway.gateway import gateway
from services.gateway.settings import Settings
from services.runtime.drain import Drain
from services.runtime.program import run


async def _serve(settings: Settings) -> None:
    drain = Drain(settings.listen.drain_seconds)
    with drain.on_signals():
        async with gateway(settings, drain=drain, registry=CollectorRegistry()):
            await drain.started.wait()


def main() -> None:
    run("gateway", Settings, _serve, CannotPublish)


if __name__ == "__main__":
    main()
