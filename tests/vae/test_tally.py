"""What the device did with a chunk is told as spans, each at its own time."""

from __future__ import annotations

from time import monotonic, time

import pytest
import torch
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from services.runtime.device import DeviceThread
from services.runtime.metrics import EngineMetrics
from services.runtime.settings import Telemetry
from services.runtime.tracing import Tracing
from services.vae.tally import Tally, Times


async def test_decoding_and_encoding_are_spans() -> None:
    exporter, thread = InMemorySpanExporter(), DeviceThread("vae", waiting=1)
    telemetry = Telemetry(trace_ratio=1.0, trace_chunk_every=1)
    with Tracing("vae", telemetry, exporter=exporter) as tracing:
        metrics = EngineMetrics(CollectorRegistry())
        tally = Tally(metrics, tracing, thread, torch.device("cpu"))
        now = monotonic()
        tally.sent(1, 7, "", Times(now - 9, now - 4, now - 3, now - 1, pass_seconds=2.0))
    await thread.close(within=5)
    times = {
        span.name: [((stamp or 0) / 1e9 - time() + monotonic() - now) for stamp in ends]
        for span in exporter.get_finished_spans()
        for ends in [(span.start_time, span.end_time)]
    }
    assert times == {
        "chunk.vae": pytest.approx([-9, -1], abs=0.05),
        "chunk.decode": pytest.approx([-6, -4], abs=0.05),
        "chunk.encode": pytest.approx([-3, -1], abs=0.05),
    }
