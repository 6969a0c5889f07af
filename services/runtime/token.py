"""The fleet's shared token: who may call score and VAE.

Beside the path: gateway → **token** → engines. Ray Serve's ingress has no TLS and no door of its
own, so every servicer asks. It keeps strangers inside the cluster from computing at our cost; what
keeps eavesdroppers out is the network (a policy, a mesh).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from talkingmachines.errors import Unauthenticated

_SCHEME = "Bearer "


class _Context(Protocol):
    def invocation_metadata(self) -> Iterable[tuple[str, Any]] | None: ...


class FleetToken:
    """Asks callers for the token in `file`; without a file, everybody may call.

    The file has one token a line; any of them is valid, and callers show the first: so a new one
    is put last, then first, and then the old one is taken away. It is read again when it changes.

    Raises:
        ValueError: the file holds no token.
        OSError: it cannot be read.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._version = -1
        self._valid: list[bytes] = []
        if file is not None:
            self._read(file)

    def check(self, context: _Context) -> None:
        """Let the caller of an RPC pass.

        Raises:
            Unauthenticated: the call does not carry a valid token.
        """
        if self._file is None:
            return
        self._refresh(self._file)
        shown = dict(context.invocation_metadata() or ()).get("authorization", "")
        text = shown if isinstance(shown, str) else shown.decode(errors="replace")
        given = text.removeprefix(_SCHEME).encode() if text.startswith(_SCHEME) else b""
        # All are compared, each in constant time: how long it takes tells nothing.
        if not sum([hmac.compare_digest(given, valid) for valid in self._valid]):
            raise Unauthenticated("no valid token of the fleet")

    def _refresh(self, file: Path) -> None:
        """A file that cannot be read, or is empty, is being written: what was valid stays so."""
        try:
            if file.stat().st_mtime_ns != self._version:
                self._read(file)
        except (OSError, ValueError):
            pass

    def _read(self, file: Path) -> None:
        version = file.stat().st_mtime_ns
        self._version, self._valid = version, _tokens(file)


def shown(file: Path) -> tuple[str, str]:
    """The metadata with which a caller shows the first token in `file`.

    Raises:
        ValueError: the file holds no token.
        OSError: it cannot be read.
    """
    return "authorization", _SCHEME + _tokens(file)[0].decode()


def _tokens(file: Path) -> list[bytes]:
    tokens = [line.strip().encode() for line in file.read_text().splitlines() if line.strip()]
    if not tokens:
        raise ValueError(f"{file} holds no token")
    return tokens
