"""The port for browsers: bound when entered, drained when left.

Beside the path: gateway → **web server** → http_api.
"""

from __future__ import annotations

import ssl
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web

from services.gateway.http_api import HttpApi
from services.gateway.webrtc import quiet
from services.runtime.endpoint import CannotListen
from services.runtime.settings import ServerTls

_log = structlog.stdlib.get_logger(__name__)

_IDLE_SECONDS = 75.0  # that a connection may be kept for another request
_STOP_SECONDS = 1.0  # for answers under way


class WebServer:
    """Serves while entered. `port` is the one bound, also when any was asked for (0).

    Raises:
        CannotListen: on entering.
    """

    def __init__(self, api: HttpApi, *, host: str, port: int, tls: ServerTls | None) -> None:
        self._api = api
        self._host = host
        self._tls = tls
        self.port = port

    async def __aenter__(self) -> Self:
        quiet()
        self._runner = web.AppRunner(
            self._api.application(),
            access_log=None,  # addresses and paths of clients are nobody's business
            keepalive_timeout=_IDLE_SECONDS,
            shutdown_timeout=_STOP_SECONDS,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port, ssl_context=_context(self._tls))
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            where = f"{self._host}:{self.port}"
            raise CannotListen(f"cannot listen on {where}: {error.strerror}") from error
        self.port = self._runner.addresses[0][1]
        _log.info("serving browsers", host=self._host, port=self.port)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._api.close()
        await self._runner.cleanup()


def _context(files: ServerTls | None) -> ssl.SSLContext | None:
    if files is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.client_authorities)
    try:
        context.load_cert_chain(files.certificate, files.key, password="")
    except OSError as error:  # which SSL errors are, too
        pair = f"{files.certificate} and {files.key}"
        raise CannotListen(f"{pair} are no certificate with its key: {error}") from error
    if files.client_authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
