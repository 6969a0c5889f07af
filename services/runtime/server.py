"""A gRPC server from start to drained.

    drain = Drain(settings.listen.drain_seconds)
    service = Service(NAME, partial(add_ScoreServiceServicer_to_server, servicer))
    await serve(Server(settings.listen, [service], drain=drain, ...))

Up: bind, start, then SERVING. Down: NOT_SERVING, which load balancers see while the port is still
open; then the port closes and clients are told to connect elsewhere (GOAWAY), while streams go on
until the drain's deadline; then whatever is left is told `Unavailable` and ended.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime.drain import Drain
from services.runtime.endpoint import CannotListen as CannotListen
from services.runtime.endpoint import Check, failing
from services.runtime.interceptor import RpcInterceptor
from services.runtime.metrics import RpcMetrics
from services.runtime.rpc import Rpcs
from services.runtime.settings import Listen, ServerTls
from services.runtime.tracing import Tracing

_log = structlog.stdlib.get_logger(__name__)

_CHECK_SECONDS = 1.0
_STOP_SECONDS = 10.0
_FLUSH_SECONDS = 0.2  # for last statuses that grpc is still writing
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class Service:
    """What a server offers: the full name in the contracts, and how it gets onto a server."""

    name: str
    add: Callable[[grpc.aio.Server], None]


class Server:
    """Serves while entered; leaving drains. `port` is the one bound.

    Args:
        settings: address, security, limits, times.
        services: every one has its own health status.
        drain: the process's; leaving starts it when nothing else has.
        metrics, tracing: who counts and traces the RPCs.
        checks: the process is NOT_SERVING while any of them says that something is wrong.
    """

    def __init__(
        self,
        settings: Listen,
        services: Sequence[Service],
        *,
        drain: Drain,
        metrics: RpcMetrics,
        tracing: Tracing,
        checks: Mapping[str, Check],
    ) -> None:
        self.drain = drain
        self.port = settings.port
        self._settings = settings
        self._services = services
        self._metrics = metrics
        self._checks = checks
        rpcs = Rpcs(
            drain=drain,
            metrics=metrics,
            tracing=tracing,
            unary_deadline_seconds=settings.unary_deadline_seconds,
        )
        self._interceptor = RpcInterceptor(
            rpcs, drain=drain, max_reply_bytes=settings.limits.max_message_bytes
        )

    async def __aenter__(self) -> Self:
        self._grpc = grpc.aio.server(
            interceptors=[self._interceptor], options=self._settings.limits.server_options()
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        for service in self._services:
            service.add(self._grpc)
        if self._settings.reflection:
            names = [*self._names(), health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._grpc)
        await self._report(serving=False)
        self.port = self._bind()
        await self._grpc.start()
        wrong = failing(self._checks)
        await self._report(serving=not wrong)
        self._watching = asyncio.create_task(self._watch_checks(wrong))
        _log.info("serving", host=self._settings.host, port=self.port)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if exc is not None:
            self.drain.end_now()
        await self.stop()

    async def stop(self) -> None:
        """Drain and close; returns when nothing is left. Leaving calls it."""
        self._watching.cancel()
        self.drain.start()
        self._metrics.draining.set(1)
        _log.info("draining", seconds=round(self.drain.remaining, 3))
        await self._health.enter_graceful_shutdown()
        await self.drain.pause(self._settings.notice_seconds)
        # The port closes and GOAWAY goes out now; when streams must end is the drain's business,
        # and gRPC's own limit lies beyond it.
        closing = asyncio.create_task(self._grpc.stop(self.drain.remaining + _STOP_SECONDS))
        await self.drain.idle()
        await self._grpc.stop(_FLUSH_SECONDS)  # health watches, handlers that cannot be cancelled
        await closing
        _log.info("stopped")

    def _names(self) -> list[str]:
        return [service.name for service in self._services]

    def _bind(self) -> int:
        address = _address(self._settings.host, self._settings.port)
        tls = None if self._settings.tls is None else credentials(self._settings.tls)
        try:
            if tls is None:
                return self._grpc.add_insecure_port(address)
            return self._grpc.add_secure_port(address, tls)
        except RuntimeError as error:
            raise CannotListen(
                f"cannot listen on {address}: is the port taken, and the address ours?"
            ) from error

    async def _report(self, *, serving: bool) -> None:
        status = _SERVING if serving else _NOT_SERVING
        for name in ("", *self._names()):  # "" is the process as a whole
            await self._health.set(name, status)

    async def _watch_checks(self, before: Mapping[str, str]) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            wrong = failing(self._checks)
            if wrong.keys() != before.keys():
                _log.warning("health changed", failing=wrong)
                await self._report(serving=not wrong)
            before = wrong


async def serve(server: Server) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once."""
    with server.drain.on_signals():
        async with server:
            await server.drain.started.wait()


def credentials(files: ServerTls) -> grpc.ServerCredentials:
    """TLS from files, mutual when client authorities are given, read again when they change.

    Raises:
        CannotListen: they do not hold a certificate, its key, and authorities.
    """
    certificates = _Certificates(files)
    try:
        first = certificates.read()
    except OSError as error:
        raise CannotListen(str(error)) from error
    return grpc.dynamic_ssl_server_credentials(
        first,
        certificates.read_if_changed,  # type: ignore[arg-type]  # None means: keep what you have
        require_client_authentication=files.client_authorities is not None,
    )


def _address(host: str, port: int) -> str:
    """As gRPC wants it: a Unix socket has no port, an IPv6 address has brackets."""
    if host.startswith("unix:"):
        return host
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


@dataclass(slots=True)
class _Certificates:
    """gRPC asks at every handshake, on a thread of its own, and says nothing of bad files."""

    files: ServerTls
    _versions: list[int] = field(default_factory=list)

    def read(self) -> grpc.ServerCertificateConfiguration:
        self._versions = self._seen()
        authorities = self.files.client_authorities
        _check(self.files)
        return grpc.ssl_server_certificate_configuration(
            [(self.files.key.read_bytes(), self.files.certificate.read_bytes())],
            root_certificates=authorities.read_bytes() if authorities else None,
        )

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificates; None when they are the same, half written, or unusable."""
        try:
            return self.read() if self._seen() != self._versions else None
        except OSError as error:
            _log.warning("certificate files cannot be read", error=error)
            return None

    def _seen(self) -> list[int]:
        files = (self.files.key, self.files.certificate, self.files.client_authorities)
        return [Path(file).stat().st_mtime_ns for file in files if file is not None]


def _check(files: ServerTls) -> None:
    """Let OpenSSL read the files, which tells what is wrong with them.

    Raises:
        OSError: they cannot be read or do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The password that nobody can type: OpenSSL would ask on the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
    except ssl.SSLError as error:
        pair = f"{files.certificate} and {files.key}"
        raise OSError(f"{pair} are no certificate with its key: {error.reason}") from error
    try:
        if files.client_authorities is not None:
            context.load_verify_locations(files.client_authorities)
    except ssl.SSLError as error:
        raise OSError(f"{files.client_authorities}: no certificates: {error.reason}") from error
