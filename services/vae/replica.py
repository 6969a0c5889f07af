"""A VAE replica, put together: settings in, a servicer over a rehearsed engine out.

`__main__` puts it on a gRPC server of its own, `app.py` under Ray Serve, tests within a process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
import torch
from prometheus_client import CollectorRegistry

from services.runtime.attachments import Attachments
from services.runtime.device import DeviceThread
from services.runtime.drain import Drain
from services.runtime.endpoint import Check, HttpEndpoint
from services.runtime.metrics import Engine as EngineName
from services.runtime.metrics import EngineMetrics
from services.runtime.token import FleetToken
from services.runtime.tracing import Tracing
from services.vae.driver import Driver
from services.vae.machine import Made, load
from services.vae.servicer import Identity, VaeServicer
from services.vae.session import Decoded, Ready
from services.vae.settings import Rehearsal, Settings
from services.vae.tally import Tally
from talkingmachines.picture import VideoSettings
from talkingmachines.spec import StreamSpec
from talkingmachines.v1.vae_pb2 import DESCRIPTOR, DecodeRequest

_log = structlog.stdlib.get_logger(__name__)

NAME = DESCRIPTOR.services_by_name["VaeService"].full_name

_CLOSE_SECONDS = 5.0  # for a step that is running
_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that serves."""

    servicer: VaeServicer
    unhealthy: Check
    metrics_port: int


@asynccontextmanager
async def replica(
    settings: Settings,
    *,
    drain: Drain,
    registry: CollectorRegistry,
    tracing: Tracing,
    name: str = "",
) -> AsyncGenerator[Replica, None]:
    """A replica that serves while entered.

    Args:
        name: in logs; the machine's and the process's if not given.

    Raises:
        BadCheckpoint: the model does not fit.
        BadInput: the stream to rehearse is none of the model's.
        CannotListen: no port is left for metrics.
    """
    token = FleetToken(settings.token_file)
    metrics = EngineMetrics(registry)
    device = pick_device(settings)
    async with AsyncExitStack() as stack:
        # A piece of work for each attachment's coming, going and asking, pictures, and the steps.
        thread = DeviceThread("vae", waiting=4 * (settings.sessions + settings.terms.headroom) + 16)
        stack.push_async_callback(thread.close, within=_CLOSE_SECONDS)
        made = await thread.run(_made, settings, device)
        tally = Tally(metrics, tracing, thread, device)
        driver = Driver(made.engine, thread, witness=tally, hang_seconds=settings.hang_seconds)
        await stack.enter_async_context(driver)

        def slots() -> int:
            return min(settings.sessions, driver.statistics.fitting)

        attachments: Attachments[DecodeRequest, Ready | Decoded] = Attachments(
            settings.terms,
            engine=EngineName.VAE,
            slots=slots,
            unhealthy=driver.unhealthy,
            drain=drain,
            metrics=metrics,
        )
        await stack.enter_async_context(attachments)
        servicer = VaeServicer(
            made.engine,
            driver,
            attachments,
            identity=Identity(made.checkpoint, name or f"{socket.gethostname()}/{os.getpid()}"),
            defaults=VideoSettings(**settings.encoding.model_dump()),
            token=token,
            tally=tally,
        )
        endpoint = HttpEndpoint(
            settings.endpoint, registry=registry, checks={"engine": driver.unhealthy}
        )
        await stack.enter_async_context(endpoint)
        _log.info("ready", checkpoint=made.checkpoint, slots=slots())
        yield Replica(servicer, driver.unhealthy, endpoint.port)


def pick_device(settings: Settings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def _made(settings: Settings, device: torch.device) -> Made:
    """On the device thread, to which all of this belongs."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    made = load(
        settings.model,
        device,
        dtype=_DTYPES[settings.dtype],
        memory_bytes=settings.memory_bytes,
        load=settings.load,
        batch=settings.batch,
    )
    if settings.rehearsal is not None:
        made.engine.prepare(_spec(settings.rehearsal, made.engine.frames_per_latent))
    return made


def _spec(rehearsal: Rehearsal, frames_per_latent: int) -> StreamSpec:
    return StreamSpec(
        sample_rate=1000 * rehearsal.fps,  # no sound is involved; a chunk is whole samples
        fps=rehearsal.fps,
        latents_per_chunk=rehearsal.latents_per_chunk,
        frames_per_latent=frames_per_latent,
        width=rehearsal.width,
        height=rehearsal.height,
    )
