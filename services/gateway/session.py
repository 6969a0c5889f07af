"""One live session: the pipeline, and what its client may say meanwhile.

On the path: this is the path. Every stage is a file of its own; only the session knows them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from services.gateway.chunk import Rewind
from services.gateway.limits import Allowance, SessionLimits
from services.gateway.log import SessionLog
from services.gateway.outbox import Event
from services.gateway.pacer import Position
from services.gateway.parts import Parts
from services.gateway.speech import SpeechSource
from services.gateway.statistics import Standing, statistics
from services.runtime.metrics import SessionState
from talkingmachines import duration
from talkingmachines.errors import BadInput, QuotaExceeded, TimedOut
from talkingmachines.fields import FieldPath
from talkingmachines.media import Latents, Pcm
from talkingmachines.picture import VideoFormat, VideoSettings
from talkingmachines.v1 import avatar_pb2, media_pb2, storage_pb2, vae_pb2

_WATCH_SECONDS = 1.0


class Session:
    """A conversation from Ready to its end.

    Args:
        backlog: chunks of a resumed session that are drawn and were not played.
        new_from: the first frame that no earlier connection can have sent.
        age: seconds that a resumed session has lasted already.
    """

    def __init__(
        self,
        parts: Parts,
        limits: SessionLimits,
        standing: Standing,
        *,
        backlog: tuple[Latents, ...] = (),
        new_from: int = 0,
        age: float = 0.0,
    ) -> None:
        self._parts = parts
        self._limits = limits
        self._standing = standing
        self._backlog = backlog
        self._new_from = new_from
        self._clock = asyncio.get_running_loop().time
        self._ends_at = self._clock() + limits.session_seconds - age
        self._heard_at = self._clock()
        self._messages = Allowance(limits.messages_per_second)
        self._warned = False

    async def converse(self) -> None:
        """Draw and play what is said, until nothing more will be said."""
        chunks = self._parts.pacer.wanted()
        latents = self._parts.log.recorded(self._parts.score.flow(chunks))
        frames = self._parts.vae.flow(self._kept(latents))
        await self._parts.pacer.play(frames)

    async def run(
        self,
        requests: AsyncIterator[avatar_pb2.TalkRequest],
        source: SpeechSource,
        *alongside: Coroutine[Any, Any, None],
    ) -> None:
        """Hold the conversation with one client until either side ends it.

        Args:
            alongside: what else lasts as long as the session.

        Raises:
            TalkingMachinesError: why it ended, other than well; possibly in a group.
        """
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(self._listen(requests, source)),
                tasks.create_task(source.run(self)),
                tasks.create_task(self._watch()),
                *(tasks.create_task(work) for work in alongside),
            ]
            await self.converse()
            for task in beside:
                task.cancel()

    # ---- What a source of speech can do ----

    def say(self, pcm: Pcm, *, first_sample: int | None = None) -> None:
        chunker, most = self._parts.chunker, self._limits.buffered_seconds
        if chunker.buffered_seconds + pcm.seconds > most:
            raise QuotaExceeded("speech that waits to be played", limit=f"{most:g} s")
        turn = pcm.turn or chunker.turn_for(pcm.speaker)
        with FieldPath("audio"):
            chunker.speak(pcm, turn=turn, first_sample=first_sample)
        self._parts.pacer.speech_changed()

    def end_of_speech(self, speaker: int) -> None:
        with FieldPath("end_of_speech"):
            self._parts.chunker.end(speaker)
        self._parts.pacer.speech_changed()

    def interrupt(self, turn: int) -> None:
        chunker, pacer = self._parts.chunker, self._parts.pacer
        ended = chunker.newest_turn
        if chunker.silent and not pacer.speaking(turn):
            return  # nothing is being said, or that turn is over
        if turn > ended:
            raise BadInput("interrupt.turn", got=turn, expected=f"0 to {ended}")
        chunker.interrupt(ended + 1)
        at = pacer.rewind(ended + 1)
        self._parts.journal.wrote(max(0, self._parts.log.next_chunk - 1))
        self._parts.outbox.void(at.frame, at.sample)
        cut = avatar_pb2.Interrupted(turn=ended, sample=at.sample, frame=at.frame)
        self.tell(Event(interrupted=cut))

    def tell(self, event: Event) -> None:
        self._parts.outbox.tell(event)

    def remember(self, conversation: storage_pb2.Conversation) -> None:
        """Keep what was said where another gateway finds it."""
        self._parts.journal.said(conversation)

    def answered(self, seconds: float) -> None:
        """Note how long the user waited for the character's answer."""
        self._parts.pacer.note_answer(seconds)

    # ---- What a source of speech can see ----

    @property
    def log(self) -> SessionLog:
        return self._parts.log

    @property
    def newest_turn(self) -> int:
        return self._parts.chunker.newest_turn

    @property
    def buffered_seconds(self) -> float:
        """Speech that waits to be put into chunks."""
        return self._parts.chunker.buffered_seconds

    @property
    def shown(self) -> Position:
        """Where the client is now."""
        return self._parts.pacer.shown

    # ---- What the client says ----

    async def _listen(
        self, requests: AsyncIterator[avatar_pb2.TalkRequest], source: SpeechSource
    ) -> None:
        async for request in requests:
            self._heard_at = self._clock()
            self._warned = False
            if not self._messages.take(self._heard_at):
                raise QuotaExceeded(
                    "messages", limit=f"{self._limits.messages_per_second:g} a second"
                )
            self._hear(request, source)
        self._heard_at = float("inf")  # it hung up: what was sent is played to its end
        source.hang_up()
        self._parts.chunker.end_all()
        self._parts.pacer.hang_up()

    def _hear(self, request: avatar_pb2.TalkRequest, source: SpeechSource) -> None:
        match request.WhichOneof("message"):
            case "open":
                raise BadInput("open", got="a second one", expected="one, as the first message")
            case "interrupt":
                source.interrupt(request.interrupt.turn)
            case "playback":
                self._played(request.playback)
            case "key_frame":
                self.ask_key_frame()
            case "settings":
                self._change(VideoSettings.from_proto(request.settings, at="settings"))
            case None:
                raise BadInput("message", got="nothing", expected="one of the contract's")
            case _:
                source.take(request)

    def _played(self, playback: avatar_pb2.PlaybackPosition) -> None:
        if playback.frame > self._new_from:  # shown by this connection, so its Ready was read
            self._parts.journal.told()
        position = Position(playback.frame, playback.sample)
        self._parts.pacer.played(position, turn=playback.turn)

    def ask_key_frame(self) -> None:
        self._parts.vae.tell(vae_pb2.DecodeRequest(key_frame=media_pb2.KeyFrameRequest()))

    def _change(self, settings: VideoSettings) -> None:
        """New settings of the encoder, for this attachment and those to come."""
        wire = self._parts.vae_wire
        wire.video = VideoFormat(wire.video.form, settings.over(wire.video.settings))
        self._parts.vae.tell(vae_pb2.DecodeRequest(settings=settings.to_proto()))

    # ---- Beside the pipeline ----

    async def _kept(
        self, latents: AsyncIterator[Latents | Rewind]
    ) -> AsyncIterator[Latents | Rewind]:
        """What is to be decoded, written down for another gateway on the way."""
        for drawn in self._backlog:
            yield drawn
        async for item in latents:
            if isinstance(item, Latents):
                self._parts.journal.wrote(item.chunk)
            yield item

    async def _watch(self) -> None:
        """Statistics for the client, and an end for clients that overstay."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now, limits = self._clock(), self._limits
            self.tell(Event(statistics=statistics(self._parts)))
            self._standing.hold(self._parts.log.bytes)
            speaking = self._parts.pacer.speaking(0)
            self._standing.be(SessionState.SPEAKING if speaking else SessionState.LISTENING)
            self._parts.outbox.check(now)
            if now >= self._ends_at:
                raise QuotaExceeded(
                    "the length of a session", limit=f"{limits.session_seconds:g} s"
                )
            if now - self._heard_at >= limits.idle_seconds:
                raise TimedOut("waiting for the client to say anything", limit=limits.idle_seconds)
            left = min(self._ends_at - now, self._heard_at + limits.idle_seconds - now)
            if left <= limits.warning_seconds and not self._warned:
                self._warned = True
                self.tell(Event(notice=_ending_soon(left)))


def _ending_soon(seconds: float) -> avatar_pb2.Notice:
    return avatar_pb2.Notice(
        kind=avatar_pb2.NOTICE_KIND_ENDING_SOON,
        message=f"the session ends in {seconds:.0f} s",
        time_left=duration.to_proto(seconds),
    )
