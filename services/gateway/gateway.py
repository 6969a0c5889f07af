"""The gateway, put together: settings in, a running server out.

`__main__` runs one for ever; the fleet on one machine and the tests run some within a process.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from services.gateway.admission import Admission
from services.gateway.auth import ApiKeys, Authenticator, Door, Tokens
from services.gateway.avatars import Avatars
from services.gateway.blobs import Blobs
from services.gateway.browser_call import Desk
from services.gateway.calls import Calls, Conversation
from services.gateway.converse import Converse
from services.gateway.deletion_cost import DeletionCost, deletion_cost
from services.gateway.engines import Engines
from services.gateway.entrance import Entrance
from services.gateway.http_api import HttpApi
from services.gateway.index import Index
from services.gateway.lease import Grant, Leases
from services.gateway.opening import Workshop
from services.gateway.outbox import Room
from services.gateway.replicas import Replicas
from services.gateway.servicer import AvatarServicer
from services.gateway.session import Session
from services.gateway.settings import Settings, Web
from services.gateway.store import Certificates, Client, Store, connect
from services.gateway.web_server import WebServer
from services.runtime.drain import Drain
from services.runtime.endpoint import HttpEndpoint
from services.runtime.metrics import GatewayMetrics, RpcMetrics
from services.runtime.renewal import RenewedChannel, renewed_channel
from services.runtime.server import Server, Service
from services.runtime.settings import is_loopback
from services.runtime.token import shown
from services.runtime.tracing import Tracing
from talkingmachines.media import spec_from_proto
from talkingmachines.picture import Codec
from talkingmachines.v1.avatar_pb2 import DESCRIPTOR
from talkingmachines.v1.avatar_pb2_grpc import add_AvatarServiceServicer_to_server
from talkingmachines.v1.llm_bridge_pb2_grpc import LlmBridgeServiceStub

if TYPE_CHECKING:  # a class that only the stubs' types have
    from talkingmachines.v1.llm_bridge_pb2_grpc import LlmBridgeServiceAsyncStub

NAME = DESCRIPTOR.services_by_name["AvatarService"].full_name


@dataclass(frozen=True, slots=True)
class Serving:
    """A gateway that serves."""

    server: Server
    web: WebServer | None  # for browsers, where that is wanted
    avatars: Avatars


@asynccontextmanager
async def gateway(
    settings: Settings,
    *,
    drain: Drain,
    registry: CollectorRegistry,
) -> AsyncIterator[Serving]:
    """A gateway that serves while entered, and drains when left."""
    metrics = GatewayMetrics(registry)
    async with AsyncExitStack() as stack:
        tracing = stack.enter_context(Tracing("gateway", settings.telemetry))
        behind = await stack.enter_async_context(backing(settings, metrics))
        store, replicas = behind.store, behind.replicas
        engines, avatars = behind.engines, behind.avatars
        owner, window = secrets.token_hex(8), settings.resume_seconds
        leases = Leases(store, owner=owner, window=window, metrics=metrics)
        calls = Calls(
            avatars=avatars,
            leases=leases,
            admission=Admission(store, settings.capacity, metrics=metrics),
            workshop=Workshop(
                engines, replicas, leases, settings.lead, settings.patience, metrics, tracing
            ),
            drain=drain,
            metrics=metrics,
            conversation=await stack.enter_async_context(_conversation(settings)),
        )
        told = list[DeletionCost]()
        if settings.pod is not None:
            cost = deletion_cost(settings.pod, lambda: leases.holding, environment=os.environ)
            told.append(await stack.enter_async_context(cost))
        entrance = Entrance(_door(settings), metrics)
        servicer = AvatarServicer(entrance, avatars, calls, metrics, settings.room)
        server = Server(
            settings.listen,
            [Service(NAME, partial(add_AvatarServiceServicer_to_server, servicer))],
            drain=drain,
            metrics=RpcMetrics(registry),
            tracing=tracing,
            checks={},  # without Redis or engines running sessions go on: still worth serving
        )
        endpoint = HttpEndpoint(settings.endpoint, registry=registry, checks={})
        await stack.enter_async_context(endpoint)
        web = None
        if settings.web is not None:
            desk = _desk(settings.web, settings.room, calls, drain, metrics)
            web = _web(settings.web, entrance, avatars, desk)
            await stack.enter_async_context(web)
        await stack.enter_async_context(server)
        await stack.enter_async_context(
            _beside(drain, engines.watch(), replicas.write(), *(cost.publish() for cost in told))
        )
        yield Serving(server, web, avatars)


@dataclass(frozen=True, slots=True)
class Backing:
    """What lies behind a gateway, and behind whoever prepares characters for it."""

    store: Store
    replicas: Replicas
    engines: Engines
    avatars: Avatars


@asynccontextmanager
async def backing(settings: Settings, metrics: GatewayMetrics) -> AsyncIterator[Backing]:
    """Connected while entered."""
    async with AsyncExitStack() as stack:
        store = Store(_redis(settings), metrics)
        stack.push_async_callback(store.close)
        replicas = Replicas(store, most=settings.capacity.sessions, metrics=metrics)
        score, vae = [await stack.enter_async_context(it) for it in _channels(settings)]
        engines = Engines(score, vae, seen=replicas.seen)
        avatars = Avatars(engines, Blobs(settings.blobs_url), Index(store), metrics=metrics)
        yield Backing(store, replicas, engines, avatars)


@asynccontextmanager
async def _beside(drain: Drain, *work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do `work` while entered. It never ends by itself: when it fails, this gateway drains."""
    running = [asyncio.create_task(one) for one in work]
    for task in running:
        task.add_done_callback(lambda task: None if task.cancelled() else drain.start())
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        for task in running:
            with suppress(asyncio.CancelledError):
                await task


def _redis(settings: Settings) -> Client:
    tls = settings.redis.tls
    files = Certificates(tls.authorities, tls.certificate, tls.key)
    return connect(settings.redis.url.get_secret_value(), files)


def _channels(settings: Settings) -> list[AbstractAsyncContextManager[RenewedChannel]]:
    # Ray Serve's ingress is shared by both, and chooses by this name; others do not look at it.
    return [
        renewed_channel(
            peer, metadata=[("application", peer.application or name), *_token(settings)]
        )
        for name, peer in (("score", settings.score), ("vae", settings.vae))
    ]


def _token(settings: Settings) -> list[tuple[str, str]]:
    file = settings.engine_token_file
    return [shown(file)] if file else []


@asynccontextmanager
async def _conversation(settings: Settings) -> AsyncIterator[Conversation | None]:
    """Makes the source of speech of a CONVERSE session; None without a bridge."""
    if settings.bridge is None:
        yield None
        return
    async with renewed_channel(settings.bridge, metadata=_token(settings)) as channel:
        stub: LlmBridgeServiceAsyncStub = LlmBridgeServiceStub(channel)

        def converse(session: Session, grant: Grant) -> Converse:
            return Converse(
                session,
                stub,
                session_id=grant.session_id,
                persona=grant.record.persona,
                said=grant.conversation,
                spec=spec_from_proto(grant.record.spec, at="spec"),
            )

        yield converse


def _desk(web: Web, room: Room, calls: Calls, drain: Drain, metrics: GatewayMetrics) -> Desk:
    return Desk(
        calls=calls,
        drain=drain,
        metrics=metrics,
        room=room,
        rates=web.rates,
        viewers=web.viewers,
        connect_seconds=web.connect_seconds,
    )


def _web(web: Web, entrance: Entrance, avatars: Avatars, desk: Desk) -> WebServer:
    api = HttpApi(
        entrance=entrance,
        avatars=avatars,
        desk=desk,
        ice=web.ice,
        codecs=tuple(Codec[name] for name in web.codecs),
        auth_required=not entrance.door.open,
        public=not is_loopback(web.host),
    )
    return WebServer(api, host=web.host, port=web.port, tls=web.tls)


def _door(settings: Settings) -> Door:
    limits, ways = settings.caller_limits, list[Authenticator]()
    if settings.auth.keys_file is not None:
        ways.append(ApiKeys(settings.auth.keys_file, limits=limits))
    if (tokens := settings.auth.jwt) is not None:
        ways.append(
            Tokens(
                key=tokens.key_file.read_text() if tokens.key_file else None,
                jwks_url=tokens.jwks_url,
                issuer=tokens.issuer,
                audience=tokens.audience,
                algorithms=tokens.algorithms,
                tenant_claim=tokens.tenant_claim,
                limits=limits,
            )
        )
    return Door(ways, limits=limits)
