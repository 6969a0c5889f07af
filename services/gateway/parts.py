"""What a session is put together from.

`opening` makes the parts, `session` lets them work together; each part is a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.gateway.attachment import Attachment
from services.gateway.chunk import Chunk
from services.gateway.chunker import Chunker
from services.gateway.log import SessionLog
from services.gateway.outbox import Outbox
from services.gateway.pacer import Pacer
from services.gateway.spans import Spans
from services.gateway.wires import VaeWire
from talkingmachines.media import Latents
from talkingmachines.picture import VideoFrame
from talkingmachines.v1 import storage_pb2


class Journal(Protocol):
    """Keeps the session where another gateway finds it. Never waits, never fails."""

    def wrote(self, chunk: int) -> None:
        """A chunk was drawn, or what it holds changed; all after it were, too, or are void."""

    def told(self) -> None:
        """The client has the newest token."""

    def said(self, conversation: storage_pb2.Conversation) -> None:
        """The conversation, as it is now."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a session is put together from."""

    log: SessionLog
    chunker: Chunker
    pacer: Pacer
    score: Attachment[Chunk, Latents]
    vae: Attachment[Latents, VideoFrame]
    vae_wire: VaeWire
    outbox: Outbox
    journal: Journal
    spans: Spans
