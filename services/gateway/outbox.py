"""What waits to be read by one client, bounded: a slow reader loses frames, not the session's time.

On the path: pacer → **outbox** → server → client. Events are never dropped; pictures and sound
that find no room are, because a late frame is worth nothing and a backlog never drains at 25 fps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from talkingmachines.errors import TimedOut
from talkingmachines.media import Pcm
from talkingmachines.picture import EncodedPicture, VideoFrame
from talkingmachines.v1 import avatar_pb2

NOT_READING = "reading what the session sends"  # what a client is told that took too long

Event = avatar_pb2.TalkResponse
Item = VideoFrame | Pcm | Event


@dataclass(frozen=True, slots=True)
class Room:
    """How much may wait for a client that reads slowly."""

    frames: int = 25
    sounds: int = 100  # pieces, one per frame and speaker
    events: int = 1_000  # nobody reads so slowly that this many come together
    seconds: float = 20.0  # without a single message being taken while some wait


class Outbox:
    """Messages in order, from one writer to one reader.

    Set before media flows:
        wants_frames, wants_sound: what the client asked for; the rest is left out.
        need_key_frame: called when an encoded picture was dropped, so that decoding can go on.
        on_held: told a frame and the seconds for which the media clock stood still before it.
    """

    def __init__(self, room: Room) -> None:
        self.wants_frames = True
        self.wants_sound = True
        self.need_key_frame: Callable[[], None] = lambda: None
        self.on_held: Callable[[int, float], None] = lambda _frame, _seconds: None
        self._room = room
        self._items: deque[Item] = deque()
        self._frames = 0
        self._sounds = 0
        self._broken = False  # whether pictures depend on one that was dropped
        self._closed = False
        self._arrived = asyncio.Event()
        self._taken_at = 0.0

    def frame(self, frame: VideoFrame) -> bool:
        """Put a picture; False when it was dropped."""
        if not self.wants_frames:
            return True
        picture = frame.picture
        dependent = isinstance(picture, EncodedPicture) and not picture.key_frame
        if self._frames >= self._room.frames or (self._broken and dependent):
            if not self._broken and isinstance(picture, EncodedPicture):
                self.need_key_frame()
            self._broken = True
            return False
        self._broken = False
        self._frames += 1
        self._put(frame)
        return True

    def sound(self, pcm: Pcm) -> None:
        if self.wants_sound and self._sounds < self._room.sounds:
            self._sounds += 1
            self._put(pcm)

    def held(self, frame: int, seconds: float) -> None:
        self.on_held(frame, seconds)

    def tell(self, event: Event) -> None:
        self._put(event)

    def turn_started(self, turn: int, sample: int, speaker: int) -> None:
        started = avatar_pb2.TurnStarted(turn=turn, first_sample=sample, speaker=speaker)
        self._put(Event(turn_started=started))

    def turn_ended(self, turn: int, sample: int) -> None:
        self._put(Event(turn_ended=avatar_pb2.TurnEnded(turn=turn, end_sample=sample)))

    def void(self, frame: int, sample: int) -> None:
        """Take back pictures from `frame` and sound from `sample` on that nobody has read."""
        kept = [item for item in self._items if not _is_void(item, frame, sample)]
        frames = sum(isinstance(item, VideoFrame) for item in kept)
        lost = frames < self._frames
        self._items = deque(kept)
        self._frames = frames
        self._sounds = sum(isinstance(item, Pcm) for item in kept)
        if lost and not self._broken:
            self._broken = True
            self.need_key_frame()

    def close(self) -> None:
        """Nothing more will come; what waits is still read."""
        self._closed = True
        self._arrived.set()

    def check(self, now: float) -> None:
        """End a client that does not read.

        Raises:
            TimedOut: nothing was taken for `Room.seconds`, though something waits.
        """
        if len(self._items) >= self._room.events or (
            self._items and now - self._taken_at > self._room.seconds
        ):
            raise TimedOut(NOT_READING, limit=self._room.seconds)

    async def __aiter__(self) -> AsyncIterator[Item]:
        clock = asyncio.get_running_loop().time
        while True:
            while not self._items:
                if self._closed:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            self._taken_at = clock()
            yield self._take()

    def _put(self, item: Item) -> None:
        if not self._items:
            self._taken_at = asyncio.get_running_loop().time()
        self._items.append(item)
        self._arrived.set()

    def _take(self) -> Item:
        item = self._items.popleft()
        self._frames -= isinstance(item, VideoFrame)
        self._sounds -= isinstance(item, Pcm)
        return item


def _is_void(item: Item, frame: int, sample: int) -> bool:
    match item:
        case VideoFrame():
            return item.frame >= frame
        case Pcm():
            return item.first_sample >= sample
        case _:
            return False
