"""Spans of turns and sampled chunks, and the trace context that ties services together.

Spans leave the process only when an OTLP endpoint is configured; the context (W3C `traceparent`)
crosses every call in its metadata either way, so that logs of all services share a trace id. A
stream lasts as long as a call, so it has no span of its own: turns and chunks have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import time_ns
from types import TracebackType
from typing import Self

from opentelemetry import context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.runtime.settings import Telemetry

AttributeValue = str | int | float | bool

_PROPAGATOR = TraceContextTextMapPropagator()
_EXPORT_SECONDS = 2  # a collector that is away must not hold up the end of a process
_FIELDS = frozenset(_PROPAGATOR.fields)


class Tracing:
    """Makes the spans of one service; closing sends what has not been sent.

    Args:
        service: `gateway`, `score`, ...
        settings: whether to export, and how much.
        exporter: where spans go; not given, to `settings.otlp_endpoint`, or nowhere.
    """

    def __init__(
        self, service: str, settings: Telemetry, *, exporter: SpanExporter | None = None
    ) -> None:
        exporter = exporter or _otlp(settings.otlp_endpoint)
        roots = TraceIdRatioBased(settings.trace_ratio) if exporter else ALWAYS_OFF
        self._provider = TracerProvider(
            sampler=ParentBased(roots), resource=Resource.create({"service.name": f"tm-{service}"})
        )
        if exporter:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("talkingmachines")
        self._chunk_every = settings.trace_chunk_every

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._provider.shutdown()

    @contextmanager
    def span(self, name: str, **attributes: AttributeValue) -> Iterator[Span]:
        """A child of whatever is going on; never give it content (speech, text, pictures)."""
        with self._started(name, SpanKind.INTERNAL, attributes) as span:
            yield span

    @contextmanager
    def rpc(self, method: str) -> Iterator[None]:
        """The span of a unary call that we serve."""
        with self._started(method, SpanKind.SERVER, {}):
            yield

    @contextmanager
    def _started(
        self, name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue]
    ) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name,
            kind=kind,
            attributes=attributes,
            # They would export messages and stacks as they are; the log has them, redacted.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_status(StatusCode.ERROR, type(error).__name__)
                raise

    @contextmanager
    def turn(self, turn: int) -> Iterator[Span]:
        """One turn of a conversation."""
        with self.span("turn", turn=turn) as span:
            yield span

    def begin(
        self,
        name: str,
        *,
        under: Span | None = None,
        ago: float = 0.0,
        **attributes: AttributeValue,
    ) -> Span:
        """A span that its caller ends, for what begins in one place and ends in another.

        Args:
            under: its parent; not given, whatever is going on.
            ago: seconds since it began.
        """
        return self._tracer.start_span(
            name,
            context=None if under is None else trace.set_span_in_context(under),
            attributes=attributes,
            start_time=time_ns() - int(ago * 1e9),
        )

    def picks(self, chunk: int) -> bool:
        """Whether the chunk is one of those that get spans: the same ones in every service."""
        return chunk % self._chunk_every == 0

    @contextmanager
    def chunk(self, turn: int, chunk: int, stage: str) -> Iterator[None]:
        """A stage of one chunk, if it is one that gets spans."""
        if not self.picks(chunk):
            yield
            return
        with self.span(f"chunk.{stage}", turn=turn, chunk=chunk):
            yield

    def chunk_done(
        self, turn: int, chunk: int, stage: str, *, seconds: float, ago: float = 0.0
    ) -> None:
        """A stage that ended `ago` seconds ago, for those who hear of it only then."""
        if not self.picks(chunk):
            return
        ended = time_ns() - round(ago * 1e9)
        began = ended - round(seconds * 1e9)
        attributes = {"turn": turn, "chunk": chunk}
        span = self._tracer.start_span(f"chunk.{stage}", attributes=attributes, start_time=began)
        span.end(ended)


def traceparent(span: Span) -> str:
    """The context of `span` as a message's field; empty when it is not recorded."""
    if not span.is_recording():
        return ""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier["traceparent"]


def outgoing() -> list[tuple[str, str]]:
    """The current trace context as metadata of a call."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return list(carrier.items())


@contextmanager
def continued(metadata: Sequence[tuple[str, str | bytes]] | None) -> Iterator[None]:
    """Go on in the trace that a caller's metadata (or a message's fields) name, if they do."""
    carrier = {
        key: value for key, value in metadata or () if key in _FIELDS and isinstance(value, str)
    }
    token = context.attach(_PROPAGATOR.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)


def trace_ids() -> dict[str, str]:
    """Trace and span id of what is going on, as logs carry them; empty outside any trace."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return {}
    return {
        "trace": trace.format_trace_id(current.trace_id),
        "span": trace.format_span_id(current.span_id),
    }


def _otlp(endpoint: str | None) -> SpanExporter | None:
    if endpoint is None:
        return None
    # Imported where it is needed: it doubles the start-up time of a process that exports nothing.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(
        endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_EXPORT_SECONDS
    )
