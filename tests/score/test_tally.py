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
from services.score.contract import Chunk, Drawn
from services.score.driver import Answer, Asked, Round
from services.score.tally import Tally

TRACE = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


async def test_denoising_and_context_are_spans_of_the_chunk_s_trace() -> None:
    exporter, thread = InMemorySpanExporter(), DeviceThread("score", waiting=1)
    telemetry = Telemetry(trace_ratio=1.0, trace_chunk_every=2)
    with Tracing("score", telemetry, exporter=exporter) as tracing:
        metrics = EngineMetrics(CollectorRegistry())
        tally = Tally(metrics, tracing, thread, torch.device("cpu"))
        now = monotonic()
        for number in (0, 1, 2):
            drawn = Drawn("call", 3, number, torch.zeros(1), late=-1.0)
            asked = Asked("call", Chunk(3, number, (), slack=1.0), now - 9, TRACE)
            # Drawn from 5 s ago to 3 s ago; its context is done one second later.
            answer = Answer(asked, drawn, now - 5, now - 3)
            tally.answered(answer)
            tally.settled(Round([drawn], now - 5, now - 3), now - 2)
    await thread.close(within=5)
    spans = [span for span in exporter.get_finished_spans() if span.attributes]
    assert [span.attributes["chunk"] for span in spans if span.attributes] == [0] * 3 + [2] * 3
    times = {
        span.name: [((stamp or 0) / 1e9 - time() + monotonic() - now) for stamp in ends]
        for span in spans
        for ends in [(span.start_time, span.end_time)]
    }
    assert times["chunk.score"] == pytest.approx([-9, -3], abs=0.05)
    assert times["chunk.denoise"] == pytest.approx([-5, -3], abs=0.05)
    assert times["chunk.context"] == pytest.approx([-3, -2], abs=0.05)
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE[3:35]}
