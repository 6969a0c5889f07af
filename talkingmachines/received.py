"""What a client has got of a session, so that a new connection repeats nothing of it.

On the path: wire → **received** → caller. A connection that replaces another may begin before the
place where that one broke off: what is known already is left out. Frames that only keep a video
decoder going come as `Preroll`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from talkingmachines.media import Pcm
from talkingmachines.picture import Codec, EncodedPicture, VideoFrame
from talkingmachines.spec import StreamSpec
from talkingmachines.v1 import avatar_pb2


@dataclass(frozen=True, slots=True)
class Preroll:
    """A frame that was delivered before: to be decoded and not shown."""

    frame: VideoFrame


class Received:
    """One session's media, in order.

    Args:
        ready: of the session's first connection.
    """

    def __init__(self, spec: StreamSpec, ready: avatar_pb2.Ready) -> None:
        self.turn = ready.turn  # the newest that is known
        self._spec = spec
        self._frame = ready.next_frame  # one past the last
        self._frame_turn = ready.turn
        self._samples: dict[int, int] = {}  # one past the last, by speaker
        self._first_sample = ready.next_sample
        self._told: dict[str, int] = {}  # the newest turn that began, and that ended

    @property
    def position(self) -> avatar_pb2.PlaybackPosition:
        """All that was delivered."""
        sample = max(self._samples.values(), default=self._first_sample)
        return avatar_pb2.PlaybackPosition(turn=self._frame_turn, frame=self._frame, sample=sample)

    def frame(self, frame: VideoFrame) -> Iterator[VideoFrame | Preroll | avatar_pb2.Interrupted]:
        """What a caller is to see of a frame that has come."""
        if frame.frame < self._frame and frame.turn > self._frame_turn:
            yield self._cut(frame.turn, frame.frame, self._spec.sample_of_frame(frame.frame))
        if frame.frame >= self._frame:
            self._frame = frame.frame + 1
            self._frame_turn = frame.turn
            self.turn = max(self.turn, frame.turn)
            yield frame
        elif _depended_on(frame):
            yield Preroll(frame)

    def sound(self, pcm: Pcm) -> Iterator[Pcm | avatar_pb2.Interrupted]:
        """What a caller is to hear of sound that has come."""
        known = self._samples.get(pcm.speaker, self._first_sample)
        if pcm.first_sample < known and pcm.turn > self.turn:
            frame = pcm.first_sample * self._spec.fps // self._spec.sample_rate
            yield self._cut(pcm.turn, frame, pcm.first_sample)
            known = pcm.first_sample
        self.turn = max(self.turn, pcm.turn)
        if pcm.end_sample > known:
            self._samples[pcm.speaker] = pcm.end_sample
            yield pcm.part(max(0, known - pcm.first_sample), len(pcm))

    def news(self, kind: str, turn: int) -> bool:
        """Whether the beginning or the end (`kind`) of a turn was not told before."""
        known = turn <= self._told.get(kind, -1)
        self._told[kind] = max(turn, self._told.get(kind, -1))
        return not known

    def interrupted(self, cut: avatar_pb2.Interrupted) -> None:
        """What lies behind the cut is void."""
        self.turn = max(self.turn, cut.turn + 1)
        self._frame = min(self._frame, cut.frame)
        self._first_sample = min(self._first_sample, cut.sample)
        self._samples = {who: min(end, cut.sample) for who, end in self._samples.items()}

    def _cut(self, turn: int, frame: int, sample: int) -> avatar_pb2.Interrupted:
        """An interruption of which the client was not told before its connection broke."""
        cut = avatar_pb2.Interrupted(turn=turn - 1, frame=frame, sample=sample)
        self.interrupted(cut)
        return cut


def _depended_on(frame: VideoFrame) -> bool:
    picture = frame.picture
    return isinstance(picture, EncodedPicture) and picture.codec is not Codec.JPEG
