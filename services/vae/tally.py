"""What this service tells Prometheus. Beside the driver, whose witness it is."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import torch

from services.runtime.device import DeviceThread
from services.runtime.metrics import (
    Cache,
    Engine,
    EngineFault,
    EngineMetrics,
    EngineStage,
    Memory,
    Refusal,
)
from services.runtime.tracing import Tracing, continued
from services.vae.engine import Statistics
from services.vae.machine import memory
from services.vae.session import Decoded, Event, Failed

_VAE = Engine.VAE


@dataclass(frozen=True, slots=True)
class Times:
    """Of one chunk; monotonic seconds."""

    asked: float
    decoded: float  # its last frames are in host memory
    packing: float  # of those
    packed: float
    pass_seconds: float  # that its passes took; frames of all but the last have left before


class Tally:
    """Args: thread, device: whose state is told whenever somebody looks."""

    def __init__(
        self, metrics: EngineMetrics, tracing: Tracing, thread: DeviceThread, device: torch.device
    ) -> None:
        self._metrics, self._tracing, self._thread = metrics, tracing, thread
        self._busy = 0.0  # seconds told
        metrics.device_waiting.labels(_VAE).set_function(lambda: thread.waiting)
        metrics.device_stalled.labels(_VAE).set_function(thread.stalled_for)
        memory_of = metrics.device_memory
        memory_of.labels(_VAE, Memory.TOTAL).set(memory(device)[1])
        memory_of.labels(_VAE, Memory.USED).set_function(lambda: memory(device)[0])

    def stepped(self, events: list[Event], statistics: Statistics) -> None:
        for event in events:
            match event:
                case Decoded():
                    self._decoded(event)
                case Failed(fault=fault):
                    self._metrics.faults.labels(_VAE, EngineFault(fault.value)).inc()
        self._metrics.cache_bytes.labels(_VAE, Cache.SESSION).set(statistics.session_bytes)
        busy = self._thread.busy_seconds
        self._metrics.device_busy.labels(_VAE).inc(busy - self._busy)
        self._busy = busy

    def refused(self) -> None:
        """A session whose state does not fit."""
        self._metrics.refusals.labels(_VAE, Refusal.CAPACITY).inc()

    def rebuilt(self, seconds: float) -> None:
        """A session's state, since it was asked for."""
        self._metrics.attach_seconds.labels(_VAE).observe(seconds)

    def sent(self, turn: int, chunk: int, trace: str, times: Times) -> None:
        """A chunk's frames are ready for the wire."""
        self._stage(EngineStage.WAIT, max(0.0, times.packing - times.asked - times.pass_seconds))
        self._stage(EngineStage.ENCODE, times.packed - times.packing)
        spans = {
            "vae": (times.asked, times.packed),
            "decode": (times.decoded - times.pass_seconds, times.decoded),
            "encode": (times.packing, times.packed),
        }
        now = monotonic()
        with continued([("traceparent", trace)]):
            for stage, (began, ended) in spans.items():
                seconds, ago = ended - began, now - ended
                self._tracing.chunk_done(turn, chunk, stage, seconds=seconds, ago=ago)

    def _decoded(self, decoded: Decoded) -> None:
        self._metrics.batch_sessions.labels(_VAE).observe(decoded.sessions)
        if decoded.last:
            self._metrics.chunks.labels(_VAE).inc()
            self._metrics.late_chunks.labels(_VAE).inc(decoded.late)
            self._stage(EngineStage.DECODE, decoded.seconds)

    def _stage(self, stage: EngineStage, seconds: float) -> None:
        self._metrics.step_seconds.labels(_VAE, stage).observe(seconds)
