"""`python -m services.llm_bridge`: one bridge, until it is told to stop."""

from __future__ import annotations

import asyncio
import sys

from prometheus_client import CollectorRegistry

from services.llm_bridge.bridge import bridge
from services.llm_bridge.settings import Settings
from services.runtime import logs
from services.runtime.drain import Drain
from services.runtime.server import CannotListen
from services.runtime.settings import BadSettings, read


async def _run(settings: Settings) -> None:
    drain = Drain(settings.listen.drain_seconds)
    with drain.on_signals():
        async with bridge(settings, drain=drain, registry=CollectorRegistry()):
            await drain.started.wait()


def main() -> None:
    try:
        settings = read(Settings)
        logs.configure("bridge", level=settings.telemetry.log_level)
        asyncio.run(_run(settings))
    except (BadSettings, CannotListen) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
