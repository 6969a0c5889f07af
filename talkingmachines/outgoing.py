"""What a client has to send during a call, and what of it a new connection may need again.

On the path: caller → **outgoing** → wire. A log with a cursor: before it lies what was sent,
behind it what was not. Reconnecting moves the cursor back to what the session does not hold.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from talkingmachines.errors import BadInput
from talkingmachines.media import Pcm
from talkingmachines.v1 import avatar_pb2, media_pb2

_MESSAGE_SECONDS = 0.5  # pieces that wait are put together up to this length
_IN_FLIGHT_SECONDS = 2.0  # speech sent so shortly before a report may be missing from it
_SHARE = 0.8  # of what the server lets wait
_UNANSWERED_SECONDS = 2.0  # after which an interruption is not to be answered any more


@dataclass(frozen=True, slots=True)
class _Ended:
    """The speaker's utterance ends at this sample of what it was sent."""

    speaker: int
    sample: int


@dataclass(frozen=True, slots=True)
class _Interrupted:
    """Speech before this is not to be heard any more."""

    turn: int  # the one meant; 0: the one that is playing
    seen: int  # the newest turn that the client knew
    at: float


_Item = Pcm | _Ended | _Interrupted | avatar_pb2.TalkRequest


class Outgoing:
    """One call's messages. `now` is the loop's time wherever it is asked for.

    Args:
        replays: whether a new connection may need again what was sent. What a user said to a
            conversation is over when the connection is.
    """

    def __init__(self, *, replays: bool) -> None:
        self.limit = math.inf  # seconds of speech that may wait at the server
        self._replays = replays
        self._items: list[_Item] = []
        self._cursor = 0
        self._said: dict[int, int] = {}  # samples of each speaker that have a place in the log
        self._rates: dict[int, int] = {}
        self._control: dict[str, avatar_pb2.TalkRequest] = {}  # only the newest of a kind counts
        self._reported = 0.0  # seconds that waited at the server when it last said so
        self._recent: deque[tuple[float, float]] = deque()  # when, how many seconds were sent

    # ---- What the caller does ----

    def say(self, pcm: Pcm) -> None:
        """Put a piece of speech at the end.

        Raises:
            BadInput: its rate is another than before.
        """
        rate = self._rates.setdefault(pcm.speaker, pcm.sample_rate)
        if rate != pcm.sample_rate:
            raise BadInput("sample_rate", got=pcm.sample_rate, expected=f"{rate} Hz, as before")
        size = round(_MESSAGE_SECONDS * rate)
        for start in range(0, len(pcm), size):
            part = pcm.part(start, start + size)
            first = self._said.get(pcm.speaker, 0)
            self._said[pcm.speaker] = first + len(part)
            self._items.append(replace(part, first_sample=first))

    def end(self, speaker: int) -> None:
        self._items.append(_Ended(speaker, self._said.get(speaker, 0)))

    def interrupt(self, turn: int, *, seen: int, now: float) -> None:
        """Drop what is not sent, and say that what was sent is not to be heard."""
        while len(self._items) > self._cursor:
            dropped = self._items.pop()
            if isinstance(dropped, Pcm):
                self._said[dropped.speaker] = dropped.first_sample
        self._items.append(_Interrupted(turn, seen, now))

    def tell(self, request: avatar_pb2.TalkRequest) -> None:
        """Anything else that comes in its turn."""
        self._items.append(request)

    def control(self, request: avatar_pb2.TalkRequest) -> None:
        """Something that goes first, and of which only the newest matters."""
        self._control[str(request.WhichOneof("message"))] = request

    # ---- What the connection does ----

    @property
    def unsent_seconds(self) -> float:
        """Speech that waits here."""
        return sum(item.seconds for item in self._items[self._cursor :] if isinstance(item, Pcm))

    @property
    def empty(self) -> bool:
        """Whether all is sent."""
        return self._cursor == len(self._items) and not self._control

    def next(self, now: float) -> avatar_pb2.TalkRequest | None:
        """The next message, or None when there is none, or no room for it at the server."""
        if self._control:
            return self._control.pop(next(iter(self._control)))
        if not self._replays:
            self._drop(self._cursor)
        if self._cursor == len(self._items):
            return None
        item = self._items[self._cursor]
        if isinstance(item, Pcm):
            return self._speech(item, now)
        self._cursor += 1
        match item:
            case _Ended(speaker=speaker):
                ended = avatar_pb2.EndOfSpeech(speaker=speaker)
                return avatar_pb2.TalkRequest(end_of_speech=ended)
            case _Interrupted(turn=turn):
                return avatar_pb2.TalkRequest(interrupt=avatar_pb2.Interrupt(turn=turn))
            case avatar_pb2.TalkRequest():
                return item

    def reported(self, buffered_seconds: float, now: float) -> None:
        """The server says how much speech waits there."""
        self._reported = buffered_seconds
        while self._recent and self._recent[0][0] < now - _IN_FLIGHT_SECONDS:
            self._recent.popleft()
        self._trim()

    def interrupted(self) -> None:
        """The server has answered the oldest interruption: what was said before it is void."""
        sent = self._items[: self._cursor]
        cuts = [index for index, item in enumerate(sent) if isinstance(item, _Interrupted)]
        if cuts:
            self._drop(cuts[0] + 1)

    def resume(self, held: Mapping[int, int], *, turn: int, now: float) -> None:
        """Go back to what the session does not hold.

        Args:
            held: samples of each speaker's speech that it holds.
            turn: the newest that it knows.
        """
        self._control.clear()
        self._reported = 0.0
        self._recent.clear()
        sent, unsent = self._items[: self._cursor], self._items[self._cursor :]
        again = [item for item in sent if self._needed(item, held, turn, now)]
        self._items = [*again, *unsent]
        self._cursor = 0
        self._cut_first(held)

    def _needed(self, item: _Item, held: Mapping[int, int], turn: int, now: float) -> bool:
        match item:
            case Pcm():
                return item.end_sample > held.get(item.speaker, 0)
            case _Ended(speaker=speaker, sample=sample):
                return sample >= held.get(speaker, 0)
            case avatar_pb2.TalkRequest():
                return False
            case _Interrupted(seen=seen, at=at):
                return turn <= seen and now - at < _UNANSWERED_SECONDS

    def _cut_first(self, held: Mapping[int, int]) -> None:
        """Leave out of each speaker's first piece what is held already."""
        for index, item in enumerate(self._items):
            if isinstance(item, Pcm):
                start = held.get(item.speaker, 0) - item.first_sample
                if start > 0:
                    self._items[index] = item.part(start, len(item))

    def _speech(self, first: Pcm, now: float) -> avatar_pb2.TalkRequest | None:
        """As much of what waits as one message carries."""
        parts, seconds = [first], first.seconds
        waiting = self._reported + sum(part for _, part in self._recent)
        if waiting and waiting + seconds > _SHARE * self.limit:
            return None
        for item in self._items[self._cursor + 1 :]:
            if not isinstance(item, Pcm) or item.speaker != first.speaker:
                break
            if seconds + item.seconds > _MESSAGE_SECONDS + 1e-9:
                break
            parts.append(item)
            seconds += item.seconds
        self._cursor += len(parts)
        self._recent.append((now, seconds))
        message = media_pb2.Pcm(
            samples=b"".join(part.samples for part in parts),
            sample_rate=first.sample_rate,
            speaker=first.speaker,
        )
        return avatar_pb2.TalkRequest(audio=message)

    def _trim(self) -> None:
        """Forget what the session must have put into chunks, and written down, by now."""
        behind, oldest = 0.0, 0
        for index in reversed(range(self._cursor)):
            item = self._items[index]
            if behind > 2 * self.limit:
                oldest = index + 1
                break
            behind += item.seconds if isinstance(item, Pcm) else 0.0
        self._drop(oldest)

    def _drop(self, count: int) -> None:
        del self._items[:count]
        self._cursor -= count
