"""Spans that services send while a benchmark runs, and what they say of devices.

A collector of OpenTelemetry's own protocol, in memory; intervals; arithmetic on intervals. Nothing
here knows what a stage is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


@dataclass(frozen=True, slots=True)
class Span:
    """Something that went on."""

    service: str
    name: str
    chunk: int | None
    began: float  # seconds on the wall clock
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class _Collector(TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Span] = []

    async def Export(self, request: ExportTraceServiceRequest, context: Any) -> Any:
        for sender in request.resource_spans:
            about = {item.key: item.value.string_value for item in sender.resource.attributes}
            for scope in sender.scope_spans:
                for span in scope.spans:
                    facts = {item.key: item.value for item in span.attributes}
                    self.spans.append(
                        Span(
                            about["service.name"],
                            span.name,
                            facts["chunk"].int_value if "chunk" in facts else None,
                            span.start_time_unix_nano / 1e9,
                            span.end_time_unix_nano / 1e9,
                        )
                    )
        return ExportTraceServiceResponse()


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[Span]]]:
    """Where to send spans, and those that have come."""
    server, collected = grpc.aio.server(), _Collector()
    add_TraceServiceServicer_to_server(collected, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"http://127.0.0.1:{port}", collected.spans
    await server.stop(0)


Interval = tuple[float, float]


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time, in intervals that do not touch."""
    out: list[Interval] = []
    for began, ended in sorted(intervals):
        if out and began <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], ended))
        elif ended > began:
            out.append((began, ended))
    return out


def seconds(intervals: Iterable[Interval]) -> float:
    """In which at least one of them goes on."""
    return sum(ended - began for began, ended in merged(intervals))


def common(first: Iterable[Interval], second: Iterable[Interval]) -> list[Interval]:
    """Time that lies in both."""
    ours, theirs = merged(first), merged(second)
    both = ((max(a[0], b[0]), min(a[1], b[1])) for a in ours for b in theirs)
    return [(began, ended) for began, ended in both if ended > began]


def idle_share(busy: Sequence[Interval], within: Interval) -> float:
    """Share of `within` in which nothing goes on."""
    return 1 - seconds(common(busy, [within])) / (within[1] - within[0])


def hidden_share(inner: Sequence[Interval], under: Sequence[Interval]) -> float:
    """Share of `inner`'s time that lies under something else's; nothing is hidden wholly."""
    whole = seconds(inner)
    return seconds(common(inner, under)) / whole if whole else 1.0
