"""`talkingmachines talk`: a character says a recording, and the film of it is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from talkingmachines import duration
from talkingmachines.cli.avatars import starting
from talkingmachines.cli.console import ERRORS, OUT
from talkingmachines.cli.server import Server, connected
from talkingmachines.client import Client
from talkingmachines.errors import BadInput, NotFound
from talkingmachines.film import Film
from talkingmachines.media import Pcm
from talkingmachines.picture import PixelFormat, VideoFormat, VideoFrame
from talkingmachines.session import Reconnecting, Session
from talkingmachines.speech import read_file
from talkingmachines.v1 import avatar_pb2


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be filmed."""

    speech: Path
    out: Path
    avatar: str | None  # id, name or picture; None: the first there is
    seed: int | None
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """How it went."""

    film: str
    seconds: float  # of the film
    frames: int
    first_frame_seconds: float
    took_seconds: float
    frames_dropped: int
    holds: int
    reconnects: int


async def talk(server: Server, wish: Wish, *, as_json: bool) -> None:
    speech = await asyncio.to_thread(read_file, wish.speech)
    async with connected(server, starting=starting) as client, character(client, wish) as avatar:
        report = await film(client, avatar, speech, wish, quiet=as_json)
    if as_json:
        print(json.dumps(asdict(report)))
        return
    OUT.print(
        f"{report.film}: {report.seconds:.1f} s, {report.frames} frames; first frame after "
        f"{report.first_frame_seconds:.2f} s, {report.frames_dropped} dropped, "
        f"{report.holds} holds"
    )


async def film(client: Client, avatar_id: str, speech: Pcm, wish: Wish, *, quiet: bool) -> Report:
    """Hold the session and write the film."""
    began, reconnects = monotonic(), 0
    session = client.talk(
        avatar_id,
        # Nothing is lost on the way to the film's own encoder.
        video=VideoFormat(PixelFormat.I420),
        seed=wish.seed,
        max_queue_seconds=wish.wait_seconds,
        on_queued=queued,
    )
    async with session:
        session.say(speech)
        session.hang_up()
        with Film(wish.out, session.spec) as made, _progress(speech.seconds, quiet) as advance:
            async for item in session:
                match item:
                    case VideoFrame():
                        made.frame(item)
                        advance(session.seconds(item))
                    case Pcm():
                        made.sound(item)
                    case Reconnecting(error=error):
                        reconnects += 1
                        ERRORS.print(f"reconnecting: {error}")
                    case avatar_pb2.Notice(message=message):
                        ERRORS.print(message)
        return _report(wish, session, made, monotonic() - began, reconnects)


def _report(wish: Wish, session: Session, made: Film, took: float, reconnects: int) -> Report:
    told = session.statistics
    return Report(
        film=str(wish.out),
        seconds=round(made.seconds, 3),
        frames=made.frames,
        first_frame_seconds=round(duration.from_proto(told.first_frame), 3),
        took_seconds=round(took, 3),
        frames_dropped=told.frames_dropped,
        holds=told.holds,
        reconnects=reconnects,
    )


@asynccontextmanager
async def character(client: Client, wish: Wish) -> AsyncIterator[str]:
    """The id of whoever is meant; made for this film alone when a picture was given."""
    name = wish.avatar
    if name is not None and await asyncio.to_thread(Path(name).is_file):
        made = await client.avatars.create(name, Path(name).stem[:100] or "picture")
        try:
            yield made.avatar_id
        finally:
            await client.avatars.delete(made.avatar_id)
        return
    found = [avatar async for avatar in client.avatars.list()]
    for avatar in found:
        known = (avatar.avatar_id, avatar.display_name.casefold())
        if name is None or name in known or name.casefold() in known:
            yield avatar.avatar_id
            return
    if name is None:
        raise BadInput("avatar", got="none", expected="a picture: the fleet has no characters")
    raise NotFound("avatar", name)


def queued(place: avatar_pb2.Queued) -> None:
    line = f"waiting: number {place.position} of {place.depth}"
    if place.HasField("expected_wait"):
        line += f", about {duration.from_proto(place.expected_wait):.0f} s"
    ERRORS.print(line)


@contextmanager
def _progress(seconds: float, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar of `seconds`; what is given is told how far the film is."""
    columns = (TextColumn("filming"), BarColumn(), TextColumn("{task.completed:.1f} s"))
    with Progress(*columns, TimeRemainingColumn(), console=ERRORS, disable=quiet) as bar:
        task = bar.add_task("film", total=seconds)
        yield lambda done: bar.update(task, completed=min(done, seconds))
