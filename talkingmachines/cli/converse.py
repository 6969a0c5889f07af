"""`talkingmachines talk --converse`: a character hears a recording and answers; a film is kept."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, field
from time import monotonic

from talkingmachines import duration
from talkingmachines.cli.avatars import starting
from talkingmachines.cli.console import ERRORS, OUT
from talkingmachines.cli.server import Server, connected
from talkingmachines.cli.talk import Wish, character, queued
from talkingmachines.client import Client
from talkingmachines.errors import TimedOut
from talkingmachines.film import Film
from talkingmachines.media import Pcm
from talkingmachines.picture import PixelFormat, VideoFormat, VideoFrame
from talkingmachines.session import Session
from talkingmachines.speech import live, read_file
from talkingmachines.v1 import avatar_pb2

_ANSWER_SECONDS = 60.0  # for an answer, from the end of the recording to its own
_AFTER_SECONDS = 0.5  # of listening that the film ends with
_NAMES = {avatar_pb2.PARTY_USER: "you", avatar_pb2.PARTY_CHARACTER: "character"}


@dataclass(frozen=True, slots=True)
class Line:
    """Something that was said, and when in the film."""

    party: str
    text: str
    seconds: float


@dataclass(slots=True)
class Report:
    """How it went."""

    film: str
    seconds: float = 0.0  # of the film
    frames: int = 0
    first_frame_seconds: float = 0.0
    answer_seconds: float = 0.0  # from the recording's last voice to the answer's first picture
    said: list[Line] = field(default_factory=list)


async def converse(server: Server, wish: Wish, *, as_json: bool) -> None:
    speech = await asyncio.to_thread(read_file, wish.speech)
    fleet = connected(server, starting=starting, converse=True)
    async with fleet as client, character(client, wish) as avatar:
        report = await _asked(client, avatar, speech, wish)
    if as_json:
        print(json.dumps(asdict(report)))
        return
    for line in report.said:
        OUT.print(f"{line.seconds:6.2f} s  {line.party}: {line.text}", highlight=False)
    OUT.print(
        f"{report.film}: {report.seconds:.1f} s, {report.frames} frames; the answer came after "
        f"{report.answer_seconds:.2f} s"
    )


async def _asked(client: Client, avatar_id: str, speech: Pcm, wish: Wish) -> Report:
    """Hold the session and write the film.

    Raises:
        TimedOut: no answer came.
    """
    session = client.talk(
        avatar_id,
        mode=avatar_pb2.TALK_MODE_CONVERSE,
        video=VideoFormat(PixelFormat.I420),
        seed=wish.seed,
        max_queue_seconds=wish.wait_seconds,
        on_queued=queued,
    )
    report = Report(str(wish.out))
    async with session:
        microphone = session.say(live(speech))
        with Film(wish.out, session.spec) as film:
            await _filmed(session, film, report, until=monotonic() + speech.seconds)
            microphone.cancel()
            report.seconds, report.frames = round(film.seconds, 3), film.frames
    told = session.statistics
    report.first_frame_seconds = round(duration.from_proto(told.first_frame), 3)
    report.answer_seconds = round(duration.from_proto(told.answer), 3)
    return report


async def _filmed(session: Session, film: Film, report: Report, *, until: float) -> None:
    """Film until the answer to what is said until `until` was heard.

    Raises:
        TimedOut: no answer came.
    """
    over = False
    end: int | None = None  # frame that the film ends with
    async for item in session:
        match item:
            case VideoFrame(frame=frame):
                film.frame(item)
                if end is not None and frame >= end and over:
                    return
            case Pcm():
                film.sound(item)
            case avatar_pb2.Statistics():
                over = item.HasField("answer")
            case avatar_pb2.TurnEnded(end_sample=sample) if monotonic() > until:
                after = _AFTER_SECONDS + sample / session.spec.sample_rate
                end = round(after * session.spec.fps)
            case avatar_pb2.Transcript(final=True):
                at = round(item.first_sample / session.spec.sample_rate, 2)
                report.said.append(Line(_NAMES.get(item.party, ""), item.text, at))
            case avatar_pb2.Notice(message=message):
                ERRORS.print(message)
        if end is None and monotonic() > until + _ANSWER_SECONDS:
            raise TimedOut("waiting for an answer", limit=_ANSWER_SECONDS)
