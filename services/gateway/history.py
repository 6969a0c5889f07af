"""What was said, called and answered, bounded: as much as a model is reminded of.

Beside the path: converse → **history** → ConverseOpen, for the next bridge; → lease, for the next
gateway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from talkingmachines.v1 import avatar_pb2, storage_pb2
from talkingmachines.v1.llm_bridge_pb2 import PastEvent

_EVENTS = 100
_BYTES = 1_000_000  # of all of them: an opening is one message

Transcript = avatar_pb2.Transcript


class History:
    """What was said, called and answered, in the order in which it began.

    The oldest is forgotten when there is too much; a result never outlives its call.

    Args:
        kept: of a resumed session, as `to_proto` gave it.
    """

    def __init__(self, kept: storage_pb2.Conversation | None = None) -> None:
        kept = kept or storage_pb2.Conversation()
        self.user_spoke = kept.user_spoke  # ever, also when that is forgotten
        self._events = deque(kept.history)
        self._bytes = sum(event.ByteSize() for event in kept.history)
        self._unfinished = kept.unfinished if kept.HasField("unfinished") else None
        self._utterances = kept.utterances
        self._numbers: dict[tuple[int, int], int] = {}  # of those going on, by party and turn

    def to_proto(self) -> storage_pb2.Conversation:
        return storage_pb2.Conversation(
            history=self._events,
            unfinished=self._unfinished,
            user_spoke=self.user_spoke,
            utterances=self._utterances,
        )

    def events(self, pending: Iterable[Transcript] = ()) -> list[PastEvent]:
        """What the next bridge must know.

        Args:
            pending: what the character is about to say, whoever made it.
        """
        pieces = [*([self._unfinished] if self._unfinished else []), *pending]
        text = "".join(piece.text for piece in pieces).strip()
        if not text:
            return list(self._events)
        return [*self._events, PastEvent(transcript=_whole(pieces[0], text))]

    # ---- What is said ----

    def number(self, words: Transcript) -> None:
        """Give the words the number of their utterance."""
        character = words.party == avatar_pb2.PARTY_CHARACTER
        key = (words.party, words.turn if character else 0)  # the user says one thing at a time
        if key not in self._numbers:
            self._utterances += 1
            self._numbers[key] = self._utterances
        words.utterance = self._numbers.pop(key) if words.final else self._numbers[key]

    def saying(self, words: Transcript) -> None:
        """The client was told a piece of what the character says."""
        known = self._unfinished
        if known is None or known.utterance != words.utterance:
            self._unfinished = Transcript()
            self._unfinished.CopyFrom(words)
            return
        known.text += words.text
        known.end_sample = words.end_sample

    def said(self, words: Transcript) -> None:
        """A whole utterance; one of which nothing was heard is none."""
        if self._unfinished is not None and self._unfinished.utterance == words.utterance:
            self._unfinished = None
        if not words.text:
            return
        self.user_spoke |= words.party == avatar_pb2.PARTY_USER
        self._add(PastEvent(transcript=_whole(words, words.text)), utterance=words.utterance)

    def broken_off(self) -> Transcript | None:
        """What the character was saying, as its last words: nobody will tell us more of it."""
        if self._unfinished is None:
            return None
        words = self._unfinished
        words.text, words.final = words.text.strip(), True
        self._numbers.pop((words.party, words.turn), None)
        self.said(words)
        return words

    # ---- What is called ----

    def called(self, call: avatar_pb2.ToolCall) -> None:
        self._add(PastEvent(tool_call=call))

    def answered(self, result: avatar_pb2.ToolResult) -> None:
        """The client's answer; only the first to a call that is known is one."""
        if self._awaited(result.call_id):
            self._add(PastEvent(tool_result=result))

    def _add(self, event: PastEvent, *, utterance: int = 0) -> None:
        """Put an event at the end; words before those that began later."""
        place = len(self._events)
        while utterance and place and self._events[place - 1].transcript.utterance > utterance:
            place -= 1
        self._events.insert(place, event)
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


def _whole(words: Transcript, text: str) -> Transcript:
    return Transcript(
        party=words.party, turn=words.turn, text=text, final=True, utterance=words.utterance
    )
