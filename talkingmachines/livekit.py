"""A character as the avatar of a LiveKit agent: `livekit.agents.voice.avatar.VideoGenerator`.

Needs livekit-agents (`talkingmachines[livekit]`). The agent's speech goes into a DRIVE session;
pictures and the speech that belongs to them come out of it, on the session's clock, for
`AvatarRunner` to publish:

    async with client.talk("ada", video=PICTURES) as session:
        avatar = CharacterVideo(session)
        runner = AvatarRunner(room, audio_recv=..., video_gen=avatar, options=avatar.options)

The runner counts what it was given as played. So sound comes while the character speaks, and none
while it listens.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator
from numpy.typing import NDArray

from talkingmachines.errors import Unavailable
from talkingmachines.media import Pcm
from talkingmachines.picture import PixelFormat, RawPicture, VideoFormat, VideoFrame
from talkingmachines.session import Session
from talkingmachines.v1 import avatar_pb2

PICTURES = VideoFormat(PixelFormat.I420)  # what the session must be asked for


class CharacterVideo(VideoGenerator):  # type: ignore[misc]  # untyped where it is not installed
    """The character of an entered DRIVE session; the session ends when whoever entered it leaves.

    Args:
        session: with pictures as `PICTURES`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._turn = 0  # the newest that began
        self._speaking = False
        self._void = 0  # turns up to this one are not to be heard any more
        self._said = False  # speech was pushed that no turn's end has covered
        self._complete = 0  # segments pushed to their end and not yet heard to it
        self._heard = False  # the segment ended after all of it was heard

    @property
    def options(self) -> AvatarOptions:
        """What the runner must know of the stream."""
        spec = self._session.spec
        return AvatarOptions(
            video_width=spec.width,
            video_height=spec.height,
            video_fps=spec.fps,
            audio_sample_rate=spec.sample_rate,
            audio_channels=1,
        )

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Say the next piece of speech, or end the utterance; waits while enough is waiting.

        Raises:
            BadInput: its sample rate is another than before.
            TalkingMachinesError: why the session is over.
        """
        if isinstance(frame, AudioSegmentEnd):
            self._session.end_of_speech()
            self._complete += self._said
            self._heard = not self._said
            return
        self._said = True
        await self._session.push(_mono(frame), sample_rate=frame.sample_rate)

    def clear_buffer(self) -> None:
        """Stop speaking now; what is not heard yet never comes."""
        self._session.interrupt()
        self._fall_silent(self._turn)
        self._said = self._heard = False
        self._complete = 0

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Pictures all the time, sound while the character speaks, each segment's end.

        Raises:
            TalkingMachinesError: why the session ended, other than well.
        """
        async for item in self._session:
            if self._heard:
                self._heard = False
                yield AudioSegmentEnd()
            match item:
                case VideoFrame(picture=RawPicture() as picture):
                    yield _picture(picture)
                case VideoFrame():
                    raise Unavailable("the session must be asked for PICTURES", retry_after=0.0)
                case Pcm() if self._speaking and item.turn > self._void:
                    yield _sound(item)
                case avatar_pb2.TurnStarted(turn=turn):
                    self._turn, self._speaking = turn, turn > self._void
                case avatar_pb2.TurnEnded(turn=turn) if turn > self._void:
                    if self._ended():
                        yield AudioSegmentEnd()
                case avatar_pb2.Interrupted(turn=turn):
                    self._fall_silent(turn)

    def _ended(self) -> bool:
        """A turn was heard to its end; returns whether a segment was."""
        self._speaking = self._said = False
        segment = self._complete > 0
        self._complete -= segment
        return segment

    def _fall_silent(self, turn: int) -> None:
        """Nothing of what was said up to `turn` is to be heard any more."""
        self._void = max(self._void, turn)
        self._speaking = self._turn > self._void


def _mono(frame: rtc.AudioFrame) -> bytes:
    samples = np.frombuffer(frame.data, np.int16)
    if frame.num_channels == 1:
        return samples.tobytes()
    channels = samples.reshape(-1, frame.num_channels).astype(np.int32)
    mixed: NDArray[np.int16] = channels.mean(axis=1).astype(np.int16)
    return mixed.tobytes()


def _sound(pcm: Pcm) -> rtc.AudioFrame:
    return rtc.AudioFrame(pcm.samples, pcm.sample_rate, 1, len(pcm))


def _picture(picture: RawPicture) -> rtc.VideoFrame:
    kind = rtc.VideoBufferType.I420
    return rtc.VideoFrame(picture.width, picture.height, kind, picture.pixels)
