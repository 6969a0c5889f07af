"""What a score replica tells Prometheus and the traces.

Beside `driver.py`, which calls it for everything that happens. Knows metrics, decides nothing.
"""

from __future__ import annotations

from time import monotonic

import torch

from services.runtime.device import DeviceThread
from services.runtime.metrics import Cache, Engine, EngineFault, EngineMetrics, EngineStage, Memory
from services.runtime.tracing import Tracing, continued
from services.score.contract import Ended, NotANumber, OutOfMemory, RankLost
from services.score.driver import Answer, Round
from services.score.engine import EngineStats
from talkingmachines.errors import TalkingMachinesError

_FAULTS: dict[type[TalkingMachinesError], EngineFault] = {
    NotANumber: EngineFault.NOT_A_NUMBER,
    OutOfMemory: EngineFault.MEMORY,
    RankLost: EngineFault.RANK,
}


class Tally:
    """Counts for one replica."""

    def __init__(
        self, metrics: EngineMetrics, tracing: Tracing, thread: DeviceThread, device: torch.device
    ) -> None:
        self._metrics, self._tracing, self._thread = metrics, tracing, thread
        self._busy = 0.0  # seconds told
        self._told = (0, 0, 0)  # hits, misses and evictions
        self._drawn: list[Answer] = []  # of the round that goes on
        engine = Engine.SCORE
        metrics.device_waiting.labels(engine).set_function(lambda: thread.waiting)
        metrics.device_stalled.labels(engine).set_function(thread.stalled_for)
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            metrics.device_memory.labels(engine, Memory.TOTAL).set(total)
            used = metrics.device_memory.labels(engine, Memory.USED)
            used.set_function(lambda: torch.cuda.memory_reserved(device))

    def opened(self, seconds: float) -> None:
        self._metrics.attach_seconds.labels(Engine.SCORE).observe(seconds)

    def answered(self, answer: Answer) -> None:
        metrics, drawn = self._metrics, answer.drawn
        waited = max(0.0, answer.began - answer.asked.at)
        metrics.step_seconds.labels(Engine.SCORE, EngineStage.WAIT).observe(waited)
        metrics.chunks.labels(Engine.SCORE).inc()
        if drawn.late > 0:
            metrics.late_chunks.labels(Engine.SCORE).inc()
        self._span("score", answer, answer.asked.at, answer.done)
        self._span("denoise", answer, answer.began, answer.done)
        self._drawn.append(answer)

    def ended(self, ended: Ended) -> None:
        kind = _FAULTS.get(type(ended.error), EngineFault.OTHER)
        self._metrics.faults.labels(Engine.SCORE, kind).inc()

    def settled(self, round_: Round, settled: float) -> None:
        if round_.sessions:
            steps = self._metrics.step_seconds
            steps.labels(Engine.SCORE, EngineStage.DENOISE).observe(round_.drawn - round_.began)
            steps.labels(Engine.SCORE, EngineStage.CONTEXT).observe(settled - round_.drawn)
            self._metrics.batch_sessions.labels(Engine.SCORE).observe(round_.sessions)
        for answer in self._drawn:
            self._span("context", answer, round_.drawn, settled)
        self._drawn.clear()

    def holds(self, stats: EngineStats) -> None:
        busy = self._thread.busy_seconds
        self._metrics.device_busy.labels(Engine.SCORE).inc(busy - self._busy)
        self._busy = busy
        metrics, engine, shelf = self._metrics, Engine.SCORE, stats.avatars
        metrics.cache_bytes.labels(engine, Cache.SESSION).set(stats.session_bytes)
        metrics.cache_bytes.labels(engine, Cache.AVATAR).set(shelf.nbytes)
        now = (shelf.hits, shelf.misses, shelf.evictions)
        counters = (metrics.cache_hits, metrics.cache_misses, metrics.cache_evictions)
        for counter, count, told in zip(counters, now, self._told, strict=True):
            counter.labels(engine, Cache.AVATAR).inc(count - told)
        self._told = now

    def _span(self, stage: str, answer: Answer, began: float, ended: float) -> None:
        """Part of a chunk's way, between two monotonic times."""
        seconds, ago = ended - began, monotonic() - ended
        with continued([("traceparent", answer.asked.trace)]):
            chunk = answer.drawn
            self._tracing.chunk_done(chunk.turn, chunk.chunk, stage, seconds=seconds, ago=ago)
