"""How one service calls another: its settings made into a channel that raises domain errors."""

from __future__ import annotations

import grpc

from services.runtime.settings import Peer, PeerTls
from services.runtime.tracing import outgoing
from talkingmachines.channel import DomainChannel, Metadata, Options


def open_channel(
    peer: Peer, *, metadata: Metadata = (), options: Options | None = None
) -> DomainChannel:
    """A channel to `peer`; every call carries the trace context and `metadata` (a shared token).

    Certificates are read now. Whoever holds channels for longer than certificates live opens new
    ones; a connection that stands is not affected.
    """
    given = [*peer.limits.client_options(), *(options or [])]
    if peer.tls is None:
        inner = grpc.aio.insecure_channel(peer.address, given)
    else:
        inner = grpc.aio.secure_channel(peer.address, _credentials(peer.tls), given)
    return DomainChannel(
        inner,
        deadline_seconds=peer.unary_deadline_seconds,
        outgoing=lambda: (*outgoing(), *metadata),
    )


def _credentials(files: PeerTls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=files.authorities.read_bytes() if files.authorities else None,
        private_key=files.key.read_bytes() if files.key else None,
        certificate_chain=files.certificate.read_bytes() if files.certificate else None,
    )
