"""How fast the transformer draws: python -m benchmarks.score --preset tiny

Runs from a plain checkout with torch, safetensors, einops and numpy; weights are random, which is
as good as any for speed. Prints a table and writes benchmarks/results/score-PRESET-DEVICE.json:

- seconds per chunk by part, as the median over chunks in mid-stream, and the engine's share;
- share of the arithmetic floor: operations that the chunk needs (`services.score.floor`) at the
  rate that this device reaches in large matrix products of the same number format, measured in the
  same run, over the seconds it took;
- memory by owner, latency of the first chunk, seconds to attach from a log's tail;
- batches of 1 to `--rows` sessions;
- the same with every optimisation left out in turn (`--each`);
- where diffusers is installed, its model on the same chunk: it keeps no keys and values, so every
  step is a pass over anchor, previous chunk and chunk.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import Figure, record
from services.score.config import DitConfig
from services.score.contract import Chunk, Drawn, LogTail, Mode, PastChunk, Speech
from services.score.engine import Engine, Limits
from services.score.floor import chunk_floor
from services.score.frontend.config import MelFrontEnd, Wav2Vec2FrontEnd
from services.score.frontend.features import AudioState, FrontEnd
from services.score.frontend.speech_encoder import SpeechEncoder
from services.score.machine import Speedups, employ, fastest
from services.score.model import Dit
from services.score.parallel import Solo
from services.score.presets import NAMES, preset
from services.score.rehearsal import nobody, rehearse
from services.score.worker import Command, Worker

R = TypeVar("R")
WARM = 3  # chunks before those that count


class Timed(Solo):
    """Carries out commands; while `apart`, one after the other, noting how long each took."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self.worker = worker
        self.apart = False
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def perform(self, command: Command[R]) -> R:
        if not self.apart:
            return super().perform(command)
        self.worker.synchronize()
        began = time.perf_counter()
        result = super().perform(command)
        self.worker.synchronize()
        self.seconds[type(command).__name__].append(time.perf_counter() - began)
        return result


class Hum:
    """A front end without weights, where wav2vec 2.0's are not at hand; its time is not counted."""

    def __init__(self, config: Wav2Vec2FrontEnd, width: int) -> None:
        self.config, self.feature_shape = config, (width,)

    def start(self, at: int, *, streams: int = 1) -> AudioState:  # noqa: ARG002
        return AudioState(at, -(-(at + self.config.history_samples) // self.config.hop), ())

    def push(self, samples: Tensor, state: AudioState) -> tuple[Tensor, AudioState]:
        sample = state.sample + samples.shape[1]
        known = (sample - self.config.lookahead_samples) // self.config.hop
        count = max(0, known - state.feature)
        features = torch.zeros(samples.shape[0], count, *self.feature_shape)
        return features, AudioState(sample, state.feature + count, ())


@dataclass(frozen=True)
class Setting:
    config: DitConfig
    device: torch.device
    dtype: torch.dtype
    rows: int
    chunks: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=NAMES, default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="measured if not given")
    parser.add_argument("--chunks", type=int, default=20, help="that count, per measurement")
    parser.add_argument("--rows", type=int, default=1, help="largest batch to try")
    parser.add_argument("--layers", type=int, help="fewer than the preset has, for a short run")
    parser.add_argument("--each", action="store_true", help="leave out every optimisation in turn")
    for speedup in fields(Speedups):
        parser.add_argument(f"--no-{speedup.name}", action="store_true")
    asked = parser.parse_args()

    config = preset(asked.preset)
    if asked.layers:
        config = replace(config, layers=asked.layers)
    device = torch.device(asked.device)
    dtype = getattr(torch, asked.dtype) if asked.dtype else fastest(config, device)
    setting = Setting(config, device, dtype, asked.rows, asked.chunks)
    on = Speedups(
        **{field.name: not getattr(asked, f"no_{field.name}") for field in fields(Speedups)}
    )

    rate = matrix_rate(device, dtype)
    result: dict[str, Any] = {
        "preset": asked.preset,
        "layers": config.layers,
        "dtype": str(dtype).removeprefix("torch."),
        "matrix_tflops": rate / 1e12,
        "floor_tflop": chunk_floor(config) / 1e12,
        "floor_seconds": chunk_floor(config) / rate,
        "period_seconds": config.spec.chunk_seconds,
        "all": measured(setting, on, rate),
    }
    if asked.each:
        for field in fields(Speedups):
            result[f"without {field.name}"] = measured(
                setting, replace(on, **{field.name: False}), rate
            )
    result["diffusers"] = diffusers_seconds(setting)
    print(json.dumps(result, indent=2))
    record(f"score-{asked.preset}-{device.type}", figures(result), result, device=device)


def figures(result: dict[str, Any]) -> dict[str, Figure]:
    """What is followed from run to run."""
    now = result["all"]

    def ms(seconds: float) -> float:
        return round(1e3 * seconds, 1)

    batches = {
        f"a session's chunk, {rows} in a pass": Figure(ms(seconds / int(rows)), "ms")
        for rows, seconds in now["batch_seconds"].items()
    }
    return {
        "chunk": Figure(ms(now["chunk_seconds"]), "ms"),
        "share of the arithmetic floor": Figure(round(100 * now["share_of_floor"], 1), "%", "more"),
        "attach": Figure(ms(now["attach_seconds"]), "ms"),
        "first chunk of a new call": Figure(ms(now["first_chunk_seconds"]), "ms"),
        "memory of a session": Figure(round(now["bytes"]["session"] / 2**20, 2), "MiB"),
        **batches,
    }


def measured(setting: Setting, speedups: Speedups, rate: float) -> dict[str, Any]:
    """One engine from nothing to a long stream."""
    config, device = setting.config, setting.device
    model = random_model(setting)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    hands = Timed(employ(model, rows=setting.rows, speedups=speedups))
    engine = Engine(
        config,
        hands,
        front_end(config),
        limits=Limits(rows=setting.rows, faces=1, avatar_bytes=16 << 30),
    )
    began = time.perf_counter()
    rehearse(engine)
    ready = time.perf_counter() - began
    batches = {str(n): seconds for n, seconds in engine.stats().chunk_seconds.items()}
    engine.expect({})
    hands.seconds.clear()
    busy = time.process_time()
    first, attach, chunk_seconds, parts = stream(engine, hands, setting.chunks)
    busy = (time.process_time() - busy) / (2 * setting.chunks + WARM + 1)
    chunk = statistics.median(chunk_seconds)
    stats = engine.stats()
    out: dict[str, Any] = {
        "chunk_seconds": chunk,
        "chunk_seconds_best": min(chunk_seconds),
        "chunk_seconds_worst": max(chunk_seconds),
        "processor_seconds": busy,  # of all threads; what a busy machine does not blur
        "parts": parts,  # one after the other; together they may take less
        "share_of_floor": chunk_floor(config) / rate / chunk,
        "real_time_factor": chunk / config.spec.chunk_seconds,
        "first_chunk_seconds": first,
        "attach_seconds": attach,
        "rehearsal_seconds": ready,
        "batch_seconds": batches,
        "bytes": {
            "weights": weights,
            "window": hands.worker.window_bytes,
            "session": stats.session_bytes,
            "avatar": stats.avatars.nbytes,
            "peak": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        },
    }
    del engine, hands, model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return out


def stream(
    engine: Engine, hands: Timed, chunks: int
) -> tuple[float, float, list[float], dict[str, float]]:
    """First chunk, attach, then seconds of every chunk and, by part, their medians."""
    log: list[PastChunk] = []
    avatar = replace(nobody(engine.config), digest="somebody")
    began = time.perf_counter()
    engine.open("call", avatar, seed=1, tail=LogTail())
    draw(engine, log)
    first = time.perf_counter() - began
    for _ in range(WARM):
        draw(engine, log)
    seconds = [drawn_in(engine, log) for _ in range(chunks)]
    hands.apart = True
    apart = statistics.median(drawn_in(engine, log) for _ in range(chunks))
    hands.apart = False
    parts = {
        "denoising steps": statistics.median(hands.seconds["Denoise"]),
        "context pass": statistics.median(hands.seconds["Remember"]),
    }
    parts["engine, audio and hand-over"] = apart - sum(parts.values())
    engine.close("call")
    engine.expect({})  # here a slow machine is a result, no reason to refuse
    began = time.perf_counter()
    engine.open("call", avatar, seed=1, tail=LogTail(tuple(log[-engine.tail.speech :])))
    hands.worker.synchronize()
    attach = time.perf_counter() - began
    return first, attach, seconds, parts


def drawn_in(engine: Engine, log: list[PastChunk]) -> float:
    """Seconds of one chunk, until the next one could begin."""
    began = time.perf_counter()
    draw(engine, log)
    engine.settle()
    return time.perf_counter() - began


def draw(engine: Engine, log: list[PastChunk]) -> None:
    said = speech(engine.config, len(log))
    engine.submit("call", Chunk(turn=0, chunk=len(log), speech=said, slack=1.0))
    (drawn,) = engine.step()
    assert isinstance(drawn, Drawn), drawn
    log.append(PastChunk(drawn.chunk, said, drawn.latents))


def speech(config: DitConfig, chunk: int) -> tuple[Speech, ...]:
    if config.audio is None:
        return ()
    spec = config.spec
    own = [
        np.random.default_rng(n).integers(-8000, 8000, spec.samples_per_chunk)
        for n in range(chunk, chunk + 3)
    ]
    pcm = np.concatenate(own)[: spec.samples_per_chunk + spec.lookahead_samples]
    return (Speech(Mode.SPEAKING, pcm.astype(np.int16)),)


def front_end(config: DitConfig) -> FrontEnd | None:
    if config.audio is None:
        return None
    if isinstance(config.audio.front_end, MelFrontEnd):
        return SpeechEncoder(config.audio.front_end).requires_grad_(False)
    return Hum(config.audio.front_end, config.audio.embedding_dim)


def random_model(setting: Setting) -> Dit:
    """Weights of a size that keeps numbers finite, made where they are used."""
    with torch.device("meta"):
        model = Dit(setting.config).to(setting.dtype)
    for name, parameter in model.named_parameters():
        if name.startswith("time_") or name.endswith("modulation"):  # as a checkpoint is loaded
            parameter.data = parameter.data.float()
    model = model.to_empty(device=setting.device).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.fill_(1)
        else:
            parameter.normal_(std=0.02)
    for buffer in model.buffers():
        buffer.zero_()
    return model


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second in large matrix products: the best of several sizes."""
    best = 0.0
    for size in (2048, 8192) if device.type == "cuda" else (512, 1024):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = min(timed(lambda: a @ b, device) for _ in range(10))  # noqa: B023
        best = max(best, 2 * size**3 / seconds)
    return best


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def diffusers_seconds(setting: Setting) -> dict[str, object] | None:
    """The denoising steps of a chunk through diffusers' model; None where it is not installed."""
    try:
        from diffusers import WanTransformer3DModel
    except ImportError:
        return None
    config, clip = setting.config, setting.config.clip
    with torch.device(setting.device):
        model = WanTransformer3DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            text_dim=config.text.dim if config.text else 8,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.layers,
            image_dim=clip.dim if clip else None,
            added_kv_proj_dim=config.dim if clip else None,
        ).to(setting.dtype).eval()  # fmt: skip
        frames = 1 + (1 + config.context.chunks) * config.stream.latents_per_chunk
        x = torch.randn(1, config.in_channels, frames, *config.latent_size, dtype=setting.dtype)
        text = torch.zeros(
            1, config.text.tokens if config.text else 1, model.config.text_dim, dtype=setting.dtype
        )
        picture = torch.zeros(1, clip.tokens, clip.dim, dtype=setting.dtype) if clip else None
        level = torch.tensor([1000.0])
    steps = len(config.schedule.levels)
    with torch.inference_mode():
        work = partial(model, x, level, text, picture, return_dict=False)
        work()
        seconds = steps * statistics.median(timed(work, setting.device) for _ in range(7))
    return {"steps_seconds": seconds, "latent_frames": frames, "note": "no audio, no context pass"}


if __name__ == "__main__":
    main()
