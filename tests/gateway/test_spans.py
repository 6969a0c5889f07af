"""A turn as a tree of spans, whatever happens to it; services go on under it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.runtime.settings import Telemetry
from services.runtime.tracing import Tracing, continued
from talkingmachines.v1 import avatar_pb2
from tests.gateway.stage import Stage, stage, voice
from tests.virtual_time import run_virtual

SPEECH = voice(2.8)  # six chunks


def traced(
    meanwhile: Callable[[Stage], Any], *, ratio: float = 1.0, caller: str = ""
) -> tuple[list[ReadableSpan], Stage]:
    """The spans of a session that says SPEECH, every second chunk of it sampled."""
    exporter = InMemorySpanExporter()
    settings = Telemetry(trace_ratio=ratio, trace_chunk_every=2)

    async def main(tracing: Tracing) -> Stage:
        with continued([("traceparent", caller)] if caller else None):
            async with stage(tracing=tracing) as on:
                on.say(SPEECH)
                await meanwhile(on)
                on.hang_up()
        return on

    with Tracing("gateway", settings, exporter=exporter) as tracing:
        on = run_virtual(main(tracing))
    return list(exporter.get_finished_spans()), on


async def nothing(_: Stage) -> None: ...


def test_a_turn_holds_its_sampled_chunks_and_they_their_stages() -> None:
    spans, on = traced(nothing)
    (turn,) = [span for span in spans if span.name == "turn"]
    assert turn.attributes == {"turn": 1}
    chunks = [span for span in spans if span.name == "chunk"]
    assert [span.attributes and span.attributes["chunk"] for span in chunks] == [0, 2, 4]
    for chunk in chunks:
        assert chunk.parent is not None
        assert chunk.parent.span_id == turn.context.span_id
        stages = [s for s in spans if s.parent and s.parent.span_id == chunk.context.span_id]
        assert {span.name for span in stages} == {"chunk.score", "chunk.vae"}
    assert len({span.context.trace_id for span in spans}) == 1
    names = {f"{chunk.context.trace_id:032x}-{chunk.context.span_id:016x}" for chunk in chunks}
    for traces in (on.score.traces, on.vae.traces):
        assert {trace[3:-3] for trace in traces if trace} == names
        assert [bool(trace) for trace in traces] == [True, False] * 3


def test_what_is_cut_off_ends_and_says_so() -> None:
    async def interrupt(on: Stage) -> None:
        await on.client.has(20)
        on.send(interrupt=avatar_pb2.Interrupt())
        await asyncio.sleep(1)

    spans, _ = traced(interrupt)
    (turn,) = [span for span in spans if span.name == "turn"]
    assert turn.attributes == {"turn": 1, "cut_off": True}
    assert all(span.end_time for span in spans)


def test_a_caller_s_trace_goes_on() -> None:
    trace = "0123456789abcdef0123456789abcdef"
    spans, _ = traced(nothing, ratio=0.0, caller=f"00-{trace}-0123456789abcdef-01")
    assert {f"{span.context.trace_id:032x}" for span in spans} == {trace}


def test_what_is_not_sampled_costs_nothing_and_says_nothing() -> None:
    spans, on = traced(nothing, ratio=0.0)
    assert not spans
    assert not any(on.score.traces + on.vae.traces)
