"""How browsers and this gateway find a way to each other: STUN, TURN, and our own address.

Beside the path: http_api, webrtc → **ice**. TURN servers let in whoever shows a name that is not
out of date, signed with the secret that they share with us (coturn: `use-auth-secret`).
"""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha1, sha256

_HOST = re.compile(r"^a=candidate:(\S+) (\d+) udp (\d+) (\S+) (\d+) typ host(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Turn:
    """TURN servers that share a secret with us."""

    urls: tuple[str, ...]
    secret: str = field(repr=False)
    seconds: float = 3600.0  # how long credentials hold

    def credentials(self, caller: str, now: float) -> tuple[str, str]:
        """Name and password for a caller.

        Args:
            caller: told to the TURN server only as a digest, for its own accounts.
            now: seconds since 1970.
        """
        who = sha256(caller.encode()).hexdigest()[:12]
        name = f"{int(now + self.seconds)}:{who}"
        signed = hmac.new(self.secret.encode(), name.encode(), sha1).digest()
        return name, b64encode(signed).decode()


@dataclass(frozen=True, slots=True)
class Ice:
    """What the operator says about the network."""

    stun_urls: tuple[str, ...] = ()
    turn: Turn | None = None
    public_address: str | None = None  # under which clients reach this gateway's ports

    def servers(self, caller: str, now: float) -> list[dict[str, object]]:
        """For a browser's `RTCPeerConnection`."""
        servers: list[dict[str, object]] = []
        if self.stun_urls:
            servers.append({"urls": list(self.stun_urls)})
        if self.turn is not None:
            name, password = self.turn.credentials(caller, now)
            urls = list(self.turn.urls)
            servers.append({"urls": urls, "username": name, "credential": password})
        return servers

    def published(self, sdp: str) -> str:
        """An answer of ours that also names the public address, ahead of the machine's own."""
        if self.public_address is None:
            return sdp
        address = self.public_address

        def both(own: re.Match[str]) -> str:
            foundation, component, priority, _, port, rest = own.groups()
            public = f"a=candidate:{foundation}p {component} udp {int(priority) + 1}"
            return f"{public} {address} {port} typ host{rest}\r\n{own[0]}"

        return _HOST.sub(both, sdp)
