"""The HTTP port of a service: `/metrics` for Prometheus, `/healthz` for liveness.

Two resources need no web framework and no thread: a dozen lines of HTTP/1.1 on the event loop,
which also makes `/healthz` fail when the loop itself hangs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from services.runtime.settings import Endpoint

_log = structlog.stdlib.get_logger(__name__)

# What is wrong right now, in a few words; None when all is well. Called often: must be quick.
Check = Callable[[], str | None]

_REQUEST_SECONDS = 5.0
_REQUEST_BYTES = 8192


class CannotListen(OSError):
    """A port is taken, an address is not this machine's, or certificates cannot be used."""


class HttpEndpoint:
    """Serves while entered. `port` is the one bound, also when the settings asked for any (0).

    Raises:
        CannotListen: on entering.
    """

    def __init__(
        self,
        settings: Endpoint,
        *,
        registry: CollectorRegistry,
        checks: Mapping[str, Check],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._checks = checks
        self.port = settings.port

    async def __aenter__(self) -> Self:
        self._server = await self._bound()
        self.port = self._server.sockets[0].getsockname()[1]
        _log.info("metrics", host=self._settings.host, port=self.port)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()

    async def _bound(self) -> asyncio.Server:
        """A server on the first free port of those that may be taken."""
        host, first = self._settings.host, self._settings.port
        last = min(first + self._settings.ports - 1, 65_535) if first else first
        for port in range(first, last + 1):
            try:
                return await asyncio.start_server(self._answer, host, port, limit=_REQUEST_BYTES)
            except OSError as error:
                if port == last:
                    where = f"{host}:{first}" if first == last else f"{host}:{first}-{last}"
                    raise CannotListen(f"cannot listen on {where}: {error.strerror}") from error
        raise AssertionError("there is at least one port")

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head.decode("latin-1")))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # whoever asked is gone, too slow, or does not speak HTTP
        finally:
            writer.close()

    def _response(self, head: str) -> bytes:
        request, *headers = head.split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _http("405 Method Not Allowed", "text/plain", b"", method)
        match path:
            case "/metrics":
                encode, kind = choose_encoder(_header(headers, "accept"))
                return _http("200 OK", kind, encode(self._registry), method)
            case "/healthz":
                wrong = failing(self._checks)
                status = "503 Service Unavailable" if wrong else "200 OK"
                return _http(status, "application/json", json.dumps(wrong).encode(), method)
            case _:
                return _http("404 Not Found", "text/plain", b"/metrics or /healthz\n", method)


def failing(checks: Mapping[str, Check]) -> dict[str, str]:
    """What is wrong, by the name of the check that found it; empty when all is well."""
    found = {name: _outcome(name, check) for name, check in checks.items()}
    return {name: wrong for name, wrong in found.items() if wrong is not None}


def _outcome(name: str, check: Check) -> str | None:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  a check that cannot tell has found something
        _log.error("a health check failed", check=name, exc_info=error)
        return f"the check itself failed: {type(error).__name__}"


def _header(headers: list[str], name: str) -> str:
    for line in headers:
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""


def _http(status: str, kind: str, body: bytes, method: str) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
