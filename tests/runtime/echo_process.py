"""The echo service as a process of its own, as a service's `__main__` would be."""

import asyncio

from prometheus_client import CollectorRegistry
from pydantic_settings import SettingsConfigDict

from services.runtime import logs
from services.runtime.drain import Drain
from services.runtime.endpoint import HttpEndpoint
from services.runtime.metrics import RpcMetrics
from services.runtime.server import Server, Service, serve
from services.runtime.settings import Listen, ServiceSettings, read
from services.runtime.tracing import Tracing
from tests.runtime.echo import NAME, Echo


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TM_ECHO_")

    listen: Listen = Listen()


async def main(settings: Settings) -> None:
    registry = CollectorRegistry()
    with Tracing("echo", settings.telemetry) as tracing:
        server = Server(
            settings.listen,
            [Service(NAME, Echo().add)],
            drain=Drain(settings.listen.drain_seconds),
            metrics=RpcMetrics(registry),
            tracing=tracing,
            checks={},
        )
        async with HttpEndpoint(settings.endpoint, registry=registry, checks={}):
            await serve(server)


if __name__ == "__main__":
    settings = read(Settings)
    logs.configure("echo", level=settings.telemetry.log_level)
    asyncio.run(main(settings))
