"""The spans of one session: turns, the chunks of them that are sampled, and their stages.

Beside the path: pacer, attachment → **spans** → tracing. A turn lasts from its first chunk's being
asked for until its end was played or cut off; score and VAE go on under a chunk's span, whose
context travels with the chunk. Never content: numbers alone.
"""

from __future__ import annotations

from opentelemetry.trace import Span

from services.gateway.chunk import Chunk
from services.runtime.metrics import Stage
from services.runtime.tracing import Tracing, traceparent


class Spans:
    """What is going on in a session now, as spans."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._turns: dict[int, Span] = {}
        self._chunks: dict[int, Span] = {}

    def asked(self, chunk: Chunk) -> None:
        """A chunk was cut, and is to be drawn."""
        if chunk.begins is not None:
            self._turns[chunk.turn] = self._tracing.begin("turn", turn=chunk.turn)
        if self._tracing.picks(chunk.chunk):
            under = self._turns.get(chunk.turn)
            self._chunks[chunk.chunk] = self._tracing.begin(
                "chunk", under=under, turn=chunk.turn, chunk=chunk.chunk, mode=chunk.mode.name
            )

    def context(self, chunk: int) -> str:
        """What a service needs to go on under the chunk's span; empty when there is none."""
        span = self._chunks.get(chunk)
        return "" if span is None else traceparent(span)

    def stage(self, chunk: int, stage: Stage, seconds: float) -> None:
        """A stage is done with a chunk, and took so long."""
        span = self._chunks.get(chunk)
        if span is not None:
            self._tracing.begin(f"chunk.{stage}", under=span, ago=seconds, chunk=chunk).end()

    def made(self, chunk: int) -> None:
        """The chunk's last frame is here."""
        if (span := self._chunks.pop(chunk, None)) is not None:
            span.end()

    def turn_over(self, turn: int) -> None:
        """The turn was played to its end."""
        if (span := self._turns.pop(turn, None)) is not None:
            span.end()

    def cut_off(self) -> None:
        """What goes on is void: the client interrupted, or the session ends."""
        for span in (*self._chunks.values(), *self._turns.values()):
            span.set_attribute("cut_off", True)
            span.end()
        self._chunks.clear()
        self._turns.clear()
