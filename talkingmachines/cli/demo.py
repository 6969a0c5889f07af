"""`talkingmachines demo`: two characters say a recording each; a film, a sheet and the figures.

What is measured is what a client sees, and what the film holds afterwards.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from time import monotonic

import av
import numpy as np
from rich.table import Table

from talkingmachines import duration
from talkingmachines.cli.avatars import starting
from talkingmachines.cli.console import ERRORS, OUT
from talkingmachines.cli.server import ROOT, Server, connected
from talkingmachines.client import Client
from talkingmachines.errors import NotFound
from talkingmachines.film import Film, pixels, sound_lag
from talkingmachines.media import Pcm
from talkingmachines.picture import PixelFormat, RawPicture, VideoFormat, VideoFrame
from talkingmachines.spec import StreamSpec
from talkingmachines.speech import read_file
from talkingmachines.v1 import avatar_pb2

_CAST = 2
_SHEET_COLUMNS = 8
_SEED = 1  # the same film every time


@dataclass(slots=True)
class Take:
    """One character's call, as its client got it."""

    character: str
    spec: StreamSpec
    first_frame_seconds: float = 0.0  # from asking for the session
    statistics: avatar_pb2.Statistics = field(default_factory=avatar_pb2.Statistics)
    stages: dict[str, list[float]] = field(default_factory=dict)
    skews: list[float] = field(default_factory=list)  # each picture's minus its sound's time
    pictures: list[VideoFrame] = field(default_factory=list)
    sounds: list[Pcm] = field(default_factory=list)

    def took(self, item: object) -> None:
        match item:
            case VideoFrame():
                self.pictures.append(item)
            case Pcm():
                shown = self.pictures[-1].frame / self.spec.fps
                self.skews.append(shown - item.first_sample / item.sample_rate)
                self.sounds.append(item)
            case avatar_pb2.Statistics():
                self.statistics = item
                for stage in item.stages:
                    seconds = duration.from_proto(stage.time)
                    self.stages.setdefault(stage.stage, []).append(seconds)

    def later(self, frames: int) -> tuple[list[VideoFrame], list[Pcm]]:
        """Pictures and sound, moved to where they are in the film."""
        samples = self.spec.sample_of_frame(frames)
        return (
            [replace(frame, frame=frame.frame + frames) for frame in self.pictures],
            [replace(pcm, first_sample=pcm.first_sample + samples) for pcm in self.sounds],
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """One line of the table."""

    character: str
    seconds: float  # of the film
    first_frame_seconds: float
    stage_seconds: dict[str, float]  # mean time of a chunk, by stage
    realtime_factor: float  # the slower stage of a chunk over its duration: they work side by side
    serial_factor: float  # all stages, one after the other, over its duration
    frames: int
    frames_dropped: int
    holds: int
    held_seconds: float
    received_skew_ms: float  # the most between a picture and the sound that came with it

    @classmethod
    def of(cls, take: Take) -> Figures:
        told, spec = take.statistics, take.spec
        stages = {name: sum(times) / len(times) for name, times in take.stages.items()}
        return cls(
            character=take.character,
            seconds=len(take.pictures) / spec.fps,
            first_frame_seconds=round(take.first_frame_seconds, 3),
            stage_seconds={name: round(seconds, 4) for name, seconds in stages.items()},
            realtime_factor=round(max(stages.values(), default=0.0) / spec.chunk_seconds, 3),
            serial_factor=round(sum(stages.values()) / spec.chunk_seconds, 3),
            frames=len(take.pictures),
            frames_dropped=told.frames_dropped,
            holds=told.holds,
            held_seconds=round(duration.from_proto(told.held), 3),
            received_skew_ms=round(1000 * max(map(abs, take.skews), default=0.0), 2),
        )


async def demo(server: Server, out: Path, sheet: Path, *, as_json: bool) -> None:
    """Film the bundled characters, one after the other.

    Raises:
        NotFound: the model comes with none.
    """
    takes = []
    async with connected(server, starting=starting) as client:
        for avatar_id, speech in await _cast(client):
            ERRORS.print(f"{avatar_id} speaks for {speech.seconds:.1f} s")
            takes.append(await _take(client, avatar_id, speech))
    lag = await asyncio.to_thread(_write, out, sheet, takes)
    figures = [Figures.of(take) for take in takes]
    if as_json:
        said = {"takes": [asdict(each) for each in figures], "film_skew_ms": round(1000 * lag, 2)}
        print(json.dumps({"film": str(out), "sheet": str(sheet), **said}))
        return
    OUT.print(_table(figures, lag))
    OUT.print(f"{out}\n{sheet}")


async def _cast(client: Client) -> list[tuple[str, Pcm]]:
    """Who speaks, and what: the first two shared characters, a bundled recording each."""
    found = [avatar async for avatar in client.avatars.list()]
    shared = [avatar.avatar_id for avatar in found if avatar.shared]
    recordings = sorted((ROOT / "models" / "tiny" / "speech").glob("*.wav"))
    if not shared or not recordings:
        raise NotFound("bundled character" if recordings else "bundled recording", "any")
    return [
        (avatar_id, await asyncio.to_thread(read_file, path))
        for avatar_id, path in zip(shared[:_CAST], recordings, strict=False)
    ]


async def _take(client: Client, avatar_id: str, speech: Pcm) -> Take:
    began = monotonic()
    session = client.talk(avatar_id, video=VideoFormat(PixelFormat.RGB24), seed=_SEED)
    async with session:
        take = Take(avatar_id, session.spec)
        session.say(speech)
        session.hang_up()
        async for item in session:
            if isinstance(item, VideoFrame) and not take.pictures:
                take.first_frame_seconds = monotonic() - began
            take.took(item)
    return take


def _write(out: Path, sheet: Path, takes: Sequence[Take]) -> float:
    """Film and sheet; returns how much later sound is than pictures in the film, in seconds."""
    spec, frames = takes[0].spec, 0
    sounds: list[Pcm] = []
    with Film(out, spec) as film:
        for take in takes:
            pictures, heard = take.later(frames)
            pending = iter(heard)
            pcm = next(pending, None)
            for picture in pictures:
                film.frame(picture)
                end = spec.sample_of_frame(picture.frame + 1)
                while pcm is not None and pcm.first_sample < end:
                    film.sound(pcm)
                    pcm = next(pending, None)
            sounds += heard
            frames += len(pictures)
    _write_sheet(sheet, takes)
    return sound_lag(out, sounds)


def _write_sheet(sheet: Path, takes: Sequence[Take]) -> None:
    """A line of pictures per character, evenly over what it said."""
    lines = []
    for take in takes:
        chosen = np.linspace(0, len(take.pictures) - 1, _SHEET_COLUMNS).round().astype(int)
        shown = [take.pictures[index].picture for index in chosen]
        assert all(isinstance(picture, RawPicture) for picture in shown)
        line = [pixels(picture) for picture in shown if isinstance(picture, RawPicture)]
        lines.append(np.concatenate(line, axis=1))
    whole = np.concatenate(lines, axis=0)
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = whole.shape[1], whole.shape[0], "rgb24"
    encoder.framerate = Fraction(1)
    (packet,) = encoder.encode(av.VideoFrame.from_ndarray(whole, format="rgb24"))
    sheet.write_bytes(bytes(packet))


def _table(figures: Sequence[Figures], lag: float) -> Table:
    table = Table("", *(each.character for each in figures), title="as the client saw it")
    stages = sorted({stage for each in figures for stage in each.stage_seconds})

    def row(name: str, values: Sequence[str]) -> None:
        table.add_row(name, *values)

    row("film", [f"{each.seconds:.1f} s, {each.frames} frames" for each in figures])
    row("first frame", [f"{each.first_frame_seconds:.2f} s" for each in figures])
    for stage in stages:
        times = [each.stage_seconds.get(stage, 0.0) for each in figures]
        row(f"a chunk in {stage}", [f"{1000 * seconds:.0f} ms" for seconds in times])
    row("real-time factor", [f"{each.realtime_factor:.2f}" for each in figures])
    row("one after the other", [f"{each.serial_factor:.2f}" for each in figures])
    row("dropped frames", [str(each.frames_dropped) for each in figures])
    row("holds", [f"{each.holds}, {each.held_seconds:.2f} s" for each in figures])
    row("A/V skew as received", [f"{each.received_skew_ms:.1f} ms" for each in figures])
    row("A/V skew in the film", [f"{1000 * lag:.1f} ms"])
    return table
