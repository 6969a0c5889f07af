"""The bridge's service: a conversation opened, held and ended; nothing else.

On the path: gateway → **servicer** → conversation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from services.llm_bridge.conversation import Conversation, Response
from services.llm_bridge.persona import Patience, Persona, persona_from_proto
from services.llm_bridge.speech_model import (
    Asked,
    Cue,
    Greet,
    Line,
    Party,
    Past,
    Reply,
    SpeechModel,
    Told,
)
from services.runtime.drain import Drain
from services.runtime.interceptor import Context
from services.runtime.logs import about
from services.runtime.metrics import BridgeMetrics
from services.runtime.token import FleetToken
from talkingmachines import duration
from talkingmachines.errors import BadInput, NoCapacity, TimedOut
from talkingmachines.v1 import avatar_pb2, llm_bridge_pb2, media_pb2
from talkingmachines.v1.llm_bridge_pb2_grpc import LlmBridgeServiceServicer

_log = structlog.stdlib.get_logger(__name__)

_HEADER_SECONDS = 10.0
_FULL_SECONDS = 2.0  # when to ask again
_MOST_UNREAD = 10_000  # messages: minutes of speech that nobody reads

_PARTIES = {avatar_pb2.PARTY_USER: Party.USER, avatar_pb2.PARTY_CHARACTER: Party.CHARACTER}

Requests = AsyncIterator[llm_bridge_pb2.ConverseRequest]


@dataclass
class LlmBridgeServicer(LlmBridgeServiceServicer):
    """LlmBridgeService over one speech model.

    Args:
        token: that callers must show.
        most: conversations at once.
    """

    model: SpeechModel
    patience: Patience
    drain: Drain
    metrics: BridgeMetrics
    token: FleetToken
    most: int
    _running: int = 0

    async def Converse(
        self, request_iterator: Requests, context: Context
    ) -> AsyncIterator[Response]:
        self.token.check(context)
        opening = await _header(request_iterator)
        if self._running >= self.most:
            raise NoCapacity("a conversation", retry_after=_FULL_SECONDS)
        self._running += 1
        self.metrics.conversations.inc()
        try:
            with about(session=opening.session_id):
                async for response in self._converse(opening, request_iterator):
                    yield response
        finally:
            self._running -= 1
            self.metrics.conversations.dec()

    async def _converse(
        self, opening: llm_bridge_pb2.ConverseOpen, requests: Requests
    ) -> AsyncIterator[Response]:
        persona = persona_from_proto(opening.persona, defaults=self.patience)
        history = [past for event in opening.history if (past := _past(event)) is not None]
        outbox: asyncio.Queue[Response | None] = asyncio.Queue(_MOST_UNREAD)
        async with self.model.dialogue(persona, history) as dialogue:
            conversation = Conversation(
                dialogue,
                persona,
                rate=self.model.sample_rate,
                next_turn=opening.next_turn,
                owed=_owed(persona, history, fresh=opening.next_turn <= 1),
                tell=outbox.put_nowait,
                metrics=self.metrics,
            )
            opened = llm_bridge_pb2.ConverseOpened(
                speech_sample_rate=self.model.sample_rate, model=self.model.name
            )
            yield Response(opened=opened)
            running = asyncio.create_task(conversation.run(requests))
            running.add_done_callback(lambda _: _close(outbox))
            leaving = asyncio.create_task(self._hand_over(outbox))
            try:
                while (response := await outbox.get()) is not None:
                    yield response
                await running
            finally:
                leaving.cancel()
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running

    async def _hand_over(self, outbox: asyncio.Queue[Response | None]) -> None:
        """Ask the gateway to go elsewhere once this process drains."""
        await self.drain.started.wait()
        hand_over = media_pb2.HandOver(
            reason=media_pb2.HAND_OVER_REASON_DRAINING,
            time_left=duration.to_proto(self.drain.remaining),
        )
        outbox.put_nowait(Response(hand_over=hand_over))


async def _header(requests: Requests) -> llm_bridge_pb2.ConverseOpen:
    try:
        async with asyncio.timeout(_HEADER_SECONDS):
            first = await anext(requests, None)
    except TimeoutError:
        raise TimedOut("waiting for the first message", limit=_HEADER_SECONDS) from None
    if first is None or not first.HasField("open"):
        got = "nothing" if first is None else first.WhichOneof("message") or "nothing"
        raise BadInput("message", got=got, expected="open, as the first message")
    return first.open


def _owed(persona: Persona, history: Sequence[Past], *, fresh: bool) -> Cue | None:
    """What the character is to say by itself: a greeting, or an answer that another bridge owed."""
    match history[-1] if history else None:
        case Line(party=Party.USER) | Told():
            return Reply()
        case None if fresh and persona.greeting:
            return Greet(persona.greeting)
        case _:
            return None


def _past(event: llm_bridge_pb2.PastEvent) -> Past | None:
    """None: of a newer gateway, or nobody's words."""
    match event.WhichOneof("event"):
        case "transcript":
            party = _PARTIES.get(event.transcript.party)
            return None if party is None else Line(party, event.transcript.text)
        case "tool_call":
            call = event.tool_call
            return Asked(call.call_id, call.name, call.arguments_json)
        case "tool_result":
            return Told(event.tool_result.call_id, event.tool_result.result_json)
        case _:
            return None


def _close(outbox: asyncio.Queue[Response | None]) -> None:
    """Nothing more comes; who reads is told, whatever is unread."""
    if outbox.full():
        outbox.get_nowait()
    outbox.put_nowait(None)
