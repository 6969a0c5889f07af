"""Score and VAE in the four arrangements of the paper's Figure 3, on this machine's cores.

Beside `figure3.py`. Every device is a process pinned to one core. A self-contained server draws and
decodes in one process, one after the other; disaggregated, another process decodes while the next
chunk is drawn. Sequence parallel, two processes draw each picture together over gloo. Engines,
ranks and weights are the real ones; speech is noise, which costs the same.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from benchmarks.score import speech
from services.score.contract import Chunk, Drawn, LogTail
from services.score.engine import Engine, Limits
from services.score.machine import engine_over, hearing
from services.score.parallel import Leader
from services.score.rehearsal import nobody
from services.score.settings import Settings
from services.score.team import Meeting, enlist, free_address, serve_rank
from services.vae.machine import load
from services.vae.pixels import Pixels
from services.vae.session import Chunk as LatentChunk
from services.vae.session import Decoded, Opening
from talkingmachines.spec import StreamSpec

MODEL = Path(__file__).resolve().parents[1] / "models" / "tiny"
DTYPE = "bfloat16"
WARM = 4  # chunks before those that count
_PATIENCE = 120.0  # seconds for a process to say something


@dataclass(frozen=True, slots=True)
class Way:
    """Which core does what."""

    ranks: int  # that draw together, on cores 0 to ranks - 1
    vae_core: int

    @property
    def disaggregated(self) -> bool:
        return self.vae_core >= self.ranks

    @property
    def cores(self) -> int:
        return max(self.ranks, self.vae_core + 1)


WAYS = {
    "self-contained": Way(ranks=1, vae_core=0),
    "self-contained, sequence parallel": Way(ranks=2, vae_core=0),
    "disaggregated": Way(ranks=1, vae_core=1),
    "disaggregated, sequence parallel": Way(ranks=2, vae_core=2),
}


@dataclass(frozen=True, slots=True)
class Stamps:
    """When a chunk was asked for, and what was done with it; monotonic seconds."""

    asked: float
    drawn: float
    remembered: tuple[float, float]  # its context pass
    decoding: float
    decoded: float


def measured(way: Way, chunks: int) -> dict[str, float]:
    """Milliseconds of a chunk, as medians in mid-stream.

    What lies between chunks as fast as they can be made; how long one takes when none is before it.
    """
    fast = list(_run(way, WARM + chunks, alone=False))[WARM:]
    stamps = fast if not way.disaggregated else list(_run(way, WARM + chunks, alone=True))[WARM:]
    between = [after.decoded - before.decoded for before, after in pairwise(fast)]

    def median(values: list[float]) -> float:
        return round(1e3 * statistics.median(values), 1)

    return {
        "latency": median([stamp.decoded - stamp.asked for stamp in stamps]),
        "period": median(between),
        "denoise": median([stamp.drawn - stamp.asked for stamp in stamps]),
        "decode": median([stamp.decoded - stamp.decoding for stamp in stamps]),
        "context": median([stamp.remembered[1] - stamp.remembered[0] for stamp in stamps]),
    }


def _run(way: Way, chunks: int, *, alone: bool) -> Iterator[Stamps]:
    """Stamps of every chunk, in order.

    Args:
        alone: each waits until the one before it was decoded.
    """
    spawn, address = mp.get_context("spawn"), free_address("127.0.0.1")
    told, tell = spawn.Pipe(duplex=False)
    there, here = spawn.Pipe() if way.disaggregated else (None, None)
    jobs: list[tuple[Any, ...]] = [(_draw, way, address, chunks, alone, tell, here)]
    jobs += [(_follow, way, address, rank) for rank in range(1, way.ranks)]
    if way.disaggregated:
        jobs.append((_decode_apart, way, there))
    processes = [spawn.Process(target=job, args=args, daemon=True) for job, *args in jobs]
    for process in processes:
        process.start()
    try:
        for _ in range(chunks):
            if not told.poll(_PATIENCE):
                raise TimeoutError(f"{way}: nothing for {_PATIENCE:g} s")
            yield told.recv()
    finally:
        for process in processes:
            process.join(5)
            process.kill()


# ---- In processes of their own ----


def _draw(
    way: Way, address: str, chunks: int, alone: bool, tell: Connection, vae: Connection | None
) -> None:
    """Rank 0: draws, and decodes or has it decoded."""
    meeting = Meeting(address, 0, way.ranks) if way.ranks > 1 else None
    with _leading(way, meeting) as engine:
        engine.open("call", nobody(engine.config), seed=1, tail=LogTail())
        if vae is None:
            _one_after_the_other(engine, chunks, tell)
        else:
            _side_by_side(engine, chunks, tell, vae, alone=alone)


def _one_after_the_other(engine: Engine, chunks: int, tell: Connection) -> None:
    decoder = _Decoder(engine.config.spec, engine.config.latent.channels)
    for chunk in range(chunks):
        asked, drawn = monotonic(), _drawn(engine, chunk)
        decoding = monotonic()
        decoder.decode(chunk, drawn)
        decoded = monotonic()
        engine.settle()
        tell.send(Stamps(asked, decoding, (decoded, monotonic()), decoding, decoded))


def _side_by_side(
    engine: Engine, chunks: int, tell: Connection, vae: Connection, *, alone: bool
) -> None:
    """One chunk is decoded while the next is drawn; who is done first waits for the other."""
    vae.send((engine.config.spec, engine.config.latent.channels))
    vae.recv()  # it has loaded
    waiting: tuple[float, float, tuple[float, float]] | None = None
    for chunk in range(chunks):
        asked, latents = monotonic(), _drawn(engine, chunk)
        drawn = monotonic()
        if waiting is not None:
            tell.send(Stamps(*waiting, *vae.recv()))
        vae.send((chunk, latents.numpy()))
        began = monotonic()
        engine.settle()
        waiting = (asked, drawn, (began, monotonic()))
        if alone:
            tell.send(Stamps(*waiting, *vae.recv()))
            waiting = None
    if waiting is not None:
        tell.send(Stamps(*waiting, *vae.recv()))
    vae.send(None)


def _decode_apart(way: Way, score: Connection) -> None:
    os.sched_setaffinity(0, {way.vae_core % (os.cpu_count() or 1)})
    torch.set_num_threads(1)
    decoder = _Decoder(*score.recv())
    score.send("ready")
    while (order := score.recv()) is not None:
        began = monotonic()
        decoder.decode(order[0], torch.from_numpy(order[1]))
        score.send((began, monotonic()))


def _follow(way: Way, address: str, rank: int) -> None:
    os.sched_setaffinity(0, {rank})
    serve_rank(_settings(way), Meeting(address, rank, way.ranks))


@contextmanager
def _leading(way: Way, meeting: Meeting | None) -> Iterator[Engine]:
    os.sched_setaffinity(0, {0})
    settings = _settings(way)
    member = enlist(settings, meeting)
    ears = hearing(member.opened, member.device, None)
    limits = Limits(sessions=1, rows=1, faces=1)
    yield engine_over(member.worker, ears, limits, member.ranks)
    if member.ranks is not None:
        Leader(member.worker, member.ranks).dismiss()


def _settings(way: Way) -> Settings:
    return Settings(model=MODEL / "score", dtype=DTYPE, threads=1, ranks=way.ranks, device="cpu")


def _drawn(engine: Engine, chunk: int) -> Tensor:
    said = speech(engine.config, chunk)
    engine.submit("call", Chunk(turn=0, chunk=chunk, speech=said, slack=1.0))
    (drawn,) = engine.step()
    assert isinstance(drawn, Drawn), drawn
    return drawn.latents


class _Decoder:
    """A VAE with one stream."""

    def __init__(self, spec: StreamSpec, channels: int) -> None:
        made = load(
            MODEL / "vae",
            torch.device("cpu"),
            dtype=getattr(torch, DTYPE),
            memory_bytes=1 << 30,
            load=1.0,
            batch=1,
        )
        self._engine = made.engine
        self._engine.prepare(spec)
        size = self._engine.config.latent_size(spec.height, spec.width)
        anchor = torch.zeros(channels, 1, *size)
        opening = Opening(
            spec, Pixels.I420, anchor, anchor[:, :0], next_chunk=0, deadline=monotonic()
        )
        self._engine.open("call", opening)
        while self._engine.busy:
            self._engine.step()

    def decode(self, chunk: int, latents: Tensor) -> None:
        self._engine.submit("call", LatentChunk(chunk, latents.float(), monotonic() + 1))
        last = False  # frames come latent by latent
        while not last:
            for event in self._engine.step():
                assert isinstance(event, Decoded), event
                last = event.last
