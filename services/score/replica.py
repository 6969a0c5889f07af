"""A score replica, put together: settings in, a servicer over a rehearsed engine out.

`__main__` puts it on a gRPC server of its own, `app.py` under Ray Serve, tests within a process.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
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
from services.runtime.weights import BadCheckpoint
from services.score.contract import RankLost
from services.score.driver import Answer, Driver
from services.score.encoders.conditioning import Encoders
from services.score.engine import Engine, Limits
from services.score.machine import engine_over, hearing
from services.score.parallel import Leader
from services.score.servicer import Embedder, Loaded, ScoreServicer
from services.score.settings import Settings
from services.score.tally import Tally
from services.score.team import Meeting, Member, enlist
from talkingmachines.v1 import score_pb2
from talkingmachines.v1.score_pb2 import DESCRIPTOR

_log = structlog.stdlib.get_logger(__name__)

NAME = DESCRIPTOR.services_by_name["ScoreService"].full_name

_CLOSE_SECONDS = 5.0  # for a step that is running
_NEW_AVATARS = 16  # that may wait for the encoders; they take one at a time
_DTYPES = {"file": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that serves."""

    servicer: ScoreServicer
    unhealthy: Check
    metrics_port: int


@asynccontextmanager
async def replica(
    settings: Settings,
    *,
    drain: Drain,
    registry: CollectorRegistry,
    tracing: Tracing,
    meeting: Meeting | None = None,
    name: str = "",
) -> AsyncGenerator[Replica, None]:
    """A replica that serves while entered.

    Args:
        meeting: where this rank 0 meets the others, with more than one.
        name: unlike any other's; made up if not given.

    Raises:
        BadCheckpoint: the model does not fit.
        CannotListen: no port is left for metrics.
    """
    token = FleetToken(settings.token_file)
    metrics = EngineMetrics(registry)
    async with AsyncExitStack() as stack:
        # A piece of work for each attachment's coming, going and rewinding, and the rounds.
        waiting = 4 * (settings.sessions + settings.terms.headroom) + 8
        thread = DeviceThread("score", waiting=waiting)
        stack.push_async_callback(thread.close, within=_CLOSE_SECONDS)
        engine, member = await thread.run(_engine, settings, meeting)
        if member.ranks is not None:
            stack.push_async_callback(_dismiss, thread, Leader(member.worker, member.ranks))
        driver = Driver(
            engine,
            thread,
            witness=Tally(metrics, tracing, thread, member.device),
            hang_seconds=settings.hang_seconds,
            probe_seconds=settings.probe_seconds,
        )
        await stack.enter_async_context(driver)
        attachments: Attachments[score_pb2.DenoiseRequest, Answer] = Attachments(
            settings.terms,
            engine=EngineName.SCORE,
            slots=lambda: driver.stats.slots,
            unhealthy=driver.unhealthy,
            drain=drain,
            metrics=metrics,
        )
        await stack.enter_async_context(attachments)
        embedder = None
        if (encoders := _encoders(settings, member)) is not None:
            beside = DeviceThread("encoders", waiting=_NEW_AVATARS)
            stack.push_async_callback(beside.close, within=_CLOSE_SECONDS)
            embedder = Embedder(
                encoders, beside, settings.encoders.prompt, settings.encoders.listening_prompt
            )
        loaded = Loaded(
            engine.config,
            member.checkpoint,
            settings.faces,
            name or f"{socket.gethostname()}-{secrets.token_hex(4)}",
        )
        endpoint = HttpEndpoint(
            settings.endpoint, registry=registry, checks={"engine": driver.unhealthy}
        )
        await stack.enter_async_context(endpoint)
        _log.info("ready", checkpoint=member.checkpoint, slots=driver.stats.slots)
        yield Replica(
            ScoreServicer(loaded, driver, attachments, token, embedder),
            driver.unhealthy,
            endpoint.port,
        )


def _encoders(settings: Settings, member: Member) -> Encoders | None:
    """What makes new avatars' embeddings, where the checkpoint needs any.

    Raises:
        BadCheckpoint: a folder was given for them, and they are not there or do not fit.
    """
    config, chosen = member.opened.config, settings.encoders
    if config.text is None and config.clip is None:
        return None
    device, dtype = torch.device(chosen.device), _DTYPES[chosen.dtype]
    if chosen.folder is not None:
        return Encoders(chosen.folder, config, device=device, dtype=dtype)
    folder = settings.model if settings.model.is_dir() else settings.model.parent
    try:
        return Encoders(folder, config, device=device, dtype=dtype)
    except BadCheckpoint as error:
        _log.warning("no encoders: avatars cannot be made here", why=str(error))
        return None


async def _dismiss(thread: DeviceThread, leader: Leader) -> None:
    with suppress(RankLost):  # that one is not there to be told
        await thread.run(leader.dismiss)


def _engine(settings: Settings, meeting: Meeting | None) -> tuple[Engine, Member]:
    """On the device thread, to which all of this belongs."""
    member = enlist(settings, meeting)
    limits = Limits(
        sessions=settings.sessions,
        headroom=settings.terms.headroom,
        rows=settings.rows,
        faces=settings.faces,
        avatar_bytes=settings.cache_bytes,
    )
    ears = hearing(member.opened, member.device, settings.wav2vec)
    return engine_over(member.worker, ears, limits, member.ranks), member
