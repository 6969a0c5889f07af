"""Who may enter, and whose tenant they are of: API keys, kept as hashes, and signed tokens.

Beside the path: server → **auth**. What is wrong with credentials is never said.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import jwt
import structlog

from services.gateway.images import ImageLimits
from services.gateway.limits import CallerLimits, SessionLimits
from talkingmachines.errors import Unauthenticated, Unavailable

_log = structlog.stdlib.get_logger(__name__)

_REFRESH_SECONDS = 10.0  # at most this often for keys that nobody knows
_LEEWAY_SECONDS = 10.0  # between our clock and the issuer's


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may enter."""

    tenant: str
    name: str  # whose limits it counts against: tenant and key, or tenant and subject
    limits: CallerLimits


class Authenticator(Protocol):
    async def caller(self, token: str) -> Caller | None:
        """Who shows this token; None when it is not of this kind, or not valid."""


class Door:
    """Lets in whoever one of the authenticators knows; everybody when there are none."""

    def __init__(self, ways: Sequence[Authenticator], *, limits: CallerLimits) -> None:
        self._ways = ways
        self.limits = limits  # of callers that have none of their own

    @property
    def open(self) -> bool:
        """Whether everybody may enter."""
        return not self._ways

    async def enter(self, metadata: Mapping[str, str]) -> Caller:
        """The caller behind a request's metadata.

        Raises:
            Unauthenticated: nobody we know.
            Unavailable: the issuer's keys cannot be fetched.
        """
        if not self._ways:
            return Caller("local", "local", self.limits)
        kind, _, token = metadata.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            for way in self._ways:
                caller = await way.caller(token.strip())
                if caller is not None:
                    return caller
        raise Unauthenticated("valid credentials are needed: authorization: Bearer KEY_OR_TOKEN")


class ApiKeys:
    """Keys from a file, which holds their SHA-256 only; read again when it changes.

    The file is JSON: `{"keys": [{"sha256": ..., "tenant": ..., "name": ..., "limits": {...}}]}`,
    limits being fields of `CallerLimits` that differ from the defaults. Keys are long and random,
    so a plain digest is as good as a slow one.

    Raises:
        ValueError: the file does not say that.
    """

    def __init__(self, file: Path, *, limits: CallerLimits) -> None:
        self._file = file
        self._limits = limits
        self._version = self._seen()
        self._callers = _read_keys(file, limits)

    async def caller(self, token: str) -> Caller | None:
        self._read_if_changed()
        return self._callers.get(sha256(token.encode()).hexdigest())

    def _read_if_changed(self) -> None:
        try:
            version = self._seen()
            if version != self._version:
                self._version = version
                self._callers = _read_keys(self._file, self._limits)
        except (OSError, ValueError) as error:  # half written: what was read before still holds
            _log.warning("the file of API keys cannot be read", error=error)

    def _seen(self) -> int:
        return self._file.stat().st_mtime_ns


class Tokens:
    """JSON web tokens, checked with one key or with the keys that an issuer publishes.

    Args:
        key: PEM of a public key, or a shared secret; with `jwks_url` not used.
        algorithms: those that are accepted; a key fits only its own kind.
        tenant_claim: the claim that names the tenant.
    """

    def __init__(
        self,
        *,
        key: str | None = None,
        jwks_url: str | None = None,
        issuer: str | None,
        audience: str | None,
        algorithms: Sequence[str],
        tenant_claim: str,
        limits: CallerLimits,
    ) -> None:
        self._key = key
        self._published = _Published(jwks_url) if jwks_url else None
        self._issuer = issuer
        self._audience = audience
        self._algorithms = list(algorithms)
        self._tenant_claim = tenant_claim
        self._limits = limits

    async def caller(self, token: str) -> Caller | None:
        try:
            key = await self._key_for(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "sub"]},
            )
        except jwt.PyJWTError:
            return None
        tenant = claims.get(self._tenant_claim)
        if not isinstance(tenant, str) or not tenant:
            return None
        return Caller(tenant, f"{tenant}/{claims['sub']}", self._limits)

    async def _key_for(self, token: str) -> Any:
        if self._published is None:
            return self._key
        return await self._published.key(jwt.get_unverified_header(token).get("kid"))


class _Published:
    """The keys that an issuer publishes. The library's client blocks, so it gets a thread."""

    def __init__(self, url: str) -> None:
        self._client = jwt.PyJWKClient(url, timeout=5)
        self._keys: dict[str | None, Any] = {}
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def key(self, kid: str | None) -> Any:
        if kid not in self._keys:
            await self._ask()
        if kid not in self._keys:
            raise jwt.InvalidKeyError("no key of that name is published")
        return self._keys[kid]

    async def _ask(self) -> None:
        clock = asyncio.get_running_loop().time
        async with self._asking:
            if clock() - self._asked_at < _REFRESH_SECONDS:
                return
            self._asked_at = clock()
            try:
                keys = await asyncio.to_thread(self._client.get_signing_keys, refresh=True)
            except jwt.PyJWKClientError as error:
                self._asked_at = float("-inf")
                raise Unavailable("the issuer's keys cannot be had", retry_after=5) from error
            self._keys = {key.key_id: key.key for key in keys}


def _read_keys(file: Path, limits: CallerLimits) -> dict[str, Caller]:
    try:
        listed = json.loads(file.read_text())["keys"]
        return {key["sha256"].lower(): _caller(key, limits) for key in listed}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not a list of keys: {error!r}") from error


def _caller(key: dict[str, Any], defaults: CallerLimits) -> Caller:
    own = _changed(defaults, key.get("limits", {}))
    return Caller(key["tenant"], f"{key['tenant']}/{key.get('name', key['sha256'][:12])}", own)


def _changed(defaults: Any, changes: dict[str, Any]) -> Any:
    """`defaults` with some fields, also of fields, replaced."""
    known = {field.name for field in fields(defaults)}
    if unknown := changes.keys() - known:
        raise ValueError(f"no such limits: {', '.join(sorted(unknown))}")
    new = {
        name: _changed(getattr(defaults, name), value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    changed = replace(defaults, **new)
    assert isinstance(changed, CallerLimits | SessionLimits | ImageLimits)
    return changed
