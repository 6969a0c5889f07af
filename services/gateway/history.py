"""What the next bridge must know of a conversation, bounded: as much as a model is reminded of.

Beside the path: converse → **history** → ConverseOpen.
"""

from __future__ import annotations

from collections import deque

from talkingmachines.v1 import avatar_pb2
from talkingmachines.v1.llm_bridge_pb2 import PastEvent

_EVENTS = 100
_BYTES = 1_000_000  # of all of them: an opening is one message


class History:
    """What was said, called and answered, oldest first.

    The oldest is forgotten when there is too much; a result never outlives its call.
    """

    def __init__(self) -> None:
        self.user_spoke = False  # ever, also when that is forgotten
        self._events: deque[PastEvent] = deque()
        self._bytes = 0

    @property
    def events(self) -> list[PastEvent]:
        return list(self._events)

    def said(self, words: avatar_pb2.Transcript) -> None:
        """A whole utterance; one of which nothing was heard is none."""
        if not words.text:
            return
        self.user_spoke |= words.party == avatar_pb2.PARTY_USER
        transcript = avatar_pb2.Transcript(
            party=words.party, turn=words.turn, text=words.text, final=True
        )
        self._add(PastEvent(transcript=transcript))

    def called(self, call: avatar_pb2.ToolCall) -> None:
        self._add(PastEvent(tool_call=call))

    def answered(self, result: avatar_pb2.ToolResult) -> None:
        """The client's answer; only the first to a call that is known is one."""
        if self._awaited(result.call_id):
            self._add(PastEvent(tool_result=result))

    def _add(self, event: PastEvent) -> None:
        self._events.append(event)
        self._bytes += event.ByteSize()
        while len(self._events) > _EVENTS or self._bytes > _BYTES:
            self._forget(self._events[0])

    def _forget(self, event: PastEvent) -> None:
        self._events.remove(event)
        self._bytes -= event.ByteSize()
        if event.HasField("tool_call"):
            for result in self._answers(event.tool_call.call_id):
                self._forget(result)

    def _answers(self, call_id: str) -> list[PastEvent]:
        return [
            event
            for event in self._events
            if event.HasField("tool_result") and event.tool_result.call_id == call_id
        ]

    def _awaited(self, call_id: str) -> bool:
        called = any(
            event.HasField("tool_call") and event.tool_call.call_id == call_id
            for event in self._events
        )
        return called and not self._answers(call_id)
