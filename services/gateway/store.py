"""Redis, as the gateway uses it: a few scripts and commands, and a clear error when it is away.

Beside the path: leases, admission and the index of avatars go through here. Only commands of
Redis 7.0 are used, so any Redis or Valkey serves; keys that a script uses together share a hash
tag, so a cluster serves as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import structlog
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import NoScriptError, RedisError

from services.runtime.metrics import GatewayMetrics
from talkingmachines.errors import Unavailable

_log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")
Client = Redis | RedisCluster

_RETRY_SECONDS = 2.0
_TIMEOUT_SECONDS = 2.0


class Script:
    """A Lua script: everything it does happens at once, or not at all."""

    def __init__(self, text: str) -> None:
        self.text = text
        # The name under which Redis caches a script.
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


class Store:
    """Redis, or `Unavailable` while it is away; the connection comes back by itself."""

    def __init__(self, client: Client, metrics: GatewayMetrics) -> None:
        self._client = client
        self._metrics = metrics
        self._up = True
        metrics.store_up.set(1)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The script's result.

        Raises:
            Unavailable: Redis does not answer.
        """
        try:
            return await self.do(lambda redis: _call(redis, "EVALSHA", script.digest, keys, args))
        except _Unknown:
            return await self.do(lambda redis: _call(redis, "EVAL", script.text, keys, args))

    async def do(self, command: Callable[[Any], Awaitable[T]]) -> T:
        """What `command` gets from Redis.

        Raises:
            Unavailable: Redis does not answer.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            with _cancellation_kept():
                result = await self._answer(command)
        except NoScriptError as error:
            raise _Unknown from error
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.store_errors.inc()
            self._seen(up=False, error=error)
            raise Unavailable(
                "the session store does not answer", retry_after=_RETRY_SECONDS
            ) from error
        self._metrics.store_seconds.observe(clock() - started)
        self._seen(up=True)
        return result

    async def close(self) -> None:
        await self._client.aclose()

    async def _answer(self, command: Callable[[Any], Awaitable[T]]) -> T:
        """What Redis says: a pooled connection may have died with a Redis that is back by now."""
        try:
            return await command(self._client)
        except ConnectionLost:
            return await command(self._client)

    def _seen(self, *, up: bool, error: Exception | None = None) -> None:
        if up != self._up:
            _log.warning("session store is back" if up else "session store is away", error=error)
        self._up = up
        self._metrics.store_up.set(up)


@contextmanager
def _cancellation_kept() -> Iterator[None]:
    """Raise a cancellation that was lost on the way: a client that connects swallows some."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


class _Unknown(Exception):
    """Redis does not have the script (it restarted)."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files for a connection with TLS."""

    authorities: Path | None = None  # who may sign the server's; not given: the system's own
    certificate: Path | None = None  # ours, for a server that asks (mutual TLS)
    key: Path | None = None


def connect(url: str, certificates: Certificates) -> Client:
    """A client for any way in which Redis is run.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`; with `+cluster` (`redis+cluster://...`) any
            node of a cluster; `redis+sentinel://user:password@host:port,host:port/master/db`.

    Raises:
        ValueError: the URL names no way that is known.
    """
    scheme = urlsplit(url).scheme
    options: dict[str, Any] = {
        "socket_timeout": _TIMEOUT_SECONDS,
        "socket_connect_timeout": _TIMEOUT_SECONDS,
    }
    if scheme.startswith("rediss"):
        files = {
            "ssl_ca_certs": certificates.authorities,
            "ssl_certfile": certificates.certificate,
            "ssl_keyfile": certificates.key,
        }
        options |= {name: str(file) for name, file in files.items() if file is not None}
    match scheme:
        case "redis" | "rediss" | "unix":
            return Redis.from_url(url, **options)
        case "redis+cluster" | "rediss+cluster":
            return RedisCluster.from_url(url.replace("+cluster", "", 1), **options)
        case "redis+sentinel" | "rediss+sentinel":
            return _sentinel(url, options, tls=scheme.startswith("rediss"))
        case _:
            raise ValueError(f"a Redis URL cannot begin with {scheme!r}")


def _sentinel(url: str, options: dict[str, Any], *, tls: bool) -> Redis:
    parts = urlsplit(url)
    nodes = [node.rpartition(":") for node in parts.netloc.rpartition("@")[2].split(",")]
    master, _, db = parts.path.strip("/").partition("/")
    if not master:
        raise ValueError("a sentinel URL names the master: redis+sentinel://host:port/master")
    login = {"username": parts.username, "password": parts.password}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(host, int(port)) for host, _, port in nodes],
        sentinel_kwargs=login,
        ssl=tls,
        db=int(db or 0),
        **login,
        **options,
    )
    return cast(Redis, sentinel.master_for(master))


async def _call(redis: Any, command: str, what: str, keys: Sequence[str], args: Any) -> Any:
    evaluate = redis.evalsha if command == "EVALSHA" else redis.eval
    return await evaluate(what, len(keys), *keys, *args)
