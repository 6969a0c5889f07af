"""`python -m services.llm_bridge`: one bridge, until it is told to stop."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from services.llm_bridge.bridge import bridge
from services.llm_bridge.installed import NotInstalled
from services.llm_bridge.settings import Settings
from services.runtime.drain import Drain
from services.runtime.program import run


async def _serve(settings: Settings) -> None:
    drain = Drain(settings.listen.drain_seconds)
    with drain.on_signals():
        async with bridge(settings, drain=drain, registry=CollectorRegistry()):
            await drain.started.wait()


def main() -> None:
    run("bridge", Settings, _serve, NotInstalled)


if __name__ == "__main__":
    main()
