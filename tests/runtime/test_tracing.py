"""Spans of turns and sampled chunks, and the context between services."""

from time import monotonic

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN_ID, INVALID_TRACE_ID, StatusCode, get_current_span

from services.runtime.settings import Telemetry
from services.runtime.tracing import Tracing, continued, outgoing, trace_ids

SETTINGS = Telemetry(trace_ratio=1.0, trace_chunk_every=10)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def test_a_turn_holds_its_sampled_chunks_and_no_others(exporter: InMemorySpanExporter) -> None:
    tracing = Tracing("gateway", SETTINGS, exporter=exporter)
    with tracing, tracing.turn(3):
        for chunk in range(25):
            with tracing.chunk(3, chunk, "score"):
                pass
    *chunks, turn = exporter.get_finished_spans()
    assert turn.name == "turn"
    assert turn.attributes == {"turn": 3}
    assert [span.attributes and span.attributes["chunk"] for span in chunks] == [0, 10, 20]
    assert all(span.parent and span.parent.span_id == turn.context.span_id for span in chunks)


def test_a_trace_goes_from_one_service_to_the_next(exporter: InMemorySpanExporter) -> None:
    gateway = Tracing("gateway", SETTINGS, exporter=exporter)
    further = InMemorySpanExporter()
    score = Tracing("score", SETTINGS, exporter=further)
    with gateway, score:
        with gateway.turn(1) as turn:
            metadata = outgoing()
        assert trace_ids() == {}
        with continued(metadata), score.chunk(1, 0, "denoise"):
            inner = get_current_span().get_span_context()
        assert trace_ids() == {}
    assert inner.trace_id == turn.get_span_context().trace_id
    spans = (*exporter.get_finished_spans(), *further.get_finished_spans())
    services = [span.resource.attributes["service.name"] for span in spans]
    assert services == ["tm-gateway", "tm-score"]


def test_an_error_marks_its_span_and_does_not_tell_it_what_it_said(
    exporter: InMemorySpanExporter,
) -> None:
    with Tracing("gateway", SETTINGS, exporter=exporter) as tracing:
        for open_span in (lambda: tracing.rpc("/Say"), lambda: tracing.span("turn")):
            with pytest.raises(RuntimeError), open_span():
                raise RuntimeError("the key is hunter2")
    for span in exporter.get_finished_spans():
        assert span.status.status_code is StatusCode.ERROR
        assert "hunter2" not in span.to_json()


def test_without_an_endpoint_traces_have_ids_and_go_nowhere() -> None:
    with Tracing("gateway", Telemetry()) as tracing, tracing.turn(1) as span:
        ids = trace_ids()
        assert not span.is_recording()
        assert int(ids["trace"], 16) != INVALID_TRACE_ID
        assert int(ids["span"], 16) != INVALID_SPAN_ID
        (traceparent,) = [value for key, value in outgoing() if key == "traceparent"]
        assert ids["trace"] in traceparent
        sampled = int(traceparent.split("-")[3], 16) & 1
        assert not sampled  # nobody further on should record it either


@pytest.mark.parametrize(
    "metadata",
    [None, (), (("traceparent", "nonsense"),), (("traceparent", b"\xff"),), (("other", "x"),)],
    ids=repr,
)
def test_metadata_without_a_usable_trace_is_no_error(
    metadata: tuple[tuple[str, str | bytes], ...] | None,
) -> None:
    with continued(metadata):
        assert trace_ids() == {}


def test_an_endpoint_makes_an_exporter_and_closing_does_not_wait_long_for_it() -> None:
    settings = Telemetry(otlp_endpoint="http://127.0.0.1:9", trace_ratio=1.0)
    with Tracing("gateway", settings) as tracing, tracing.turn(1) as span:
        assert span.is_recording()
        began = monotonic()
    assert monotonic() - began < 4
