"""Seconds as `google.protobuf.Duration`, the way every span of time crosses the wire."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration


def to_proto(seconds: float) -> Duration:
    """`seconds`, which may be negative, rounded to microseconds."""
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration


def from_proto(duration: Duration) -> float:
    """The span in seconds; an absent one reads as 0."""
    return duration.seconds + duration.nanos * 1e-9
