"""How a session is doing: for its client once a second, for the operator as a count by state."""

from __future__ import annotations

from typing import Self

from services.gateway.parts import Parts
from services.runtime.metrics import GatewayMetrics, SessionState
from talkingmachines import duration
from talkingmachines.v1 import avatar_pb2


class Standing:
    """The state in which one session is counted; leaving the block counts it no more."""

    def __init__(self, metrics: GatewayMetrics, state: SessionState) -> None:
        self._sessions = metrics.sessions
        self._bytes = metrics.log_bytes
        self._held = 0
        self._state = state

    def be(self, state: SessionState) -> None:
        self._sessions.labels(self._state).dec()
        self._sessions.labels(state).inc()
        self._state = state

    def hold(self, size: int) -> None:
        """Count the bytes of the session's log."""
        self._bytes.inc(size - self._held)
        self._held = size

    def __enter__(self) -> Self:
        self._sessions.labels(self._state).inc()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold(0)
        self._sessions.labels(self._state).dec()


def statistics(parts: Parts) -> avatar_pb2.Statistics:
    """Totals since the session was opened, or resumed here."""
    playout = parts.pacer.playout
    message = avatar_pb2.Statistics(
        chunks=playout.chunks,
        frames_sent=playout.frames_sent,
        frames_dropped=playout.frames_dropped,
        deadline_misses=playout.deadline_misses,
        holds=playout.holds,
        held=duration.to_proto(playout.held_seconds),
        hand_overs=parts.score.hand_overs + parts.vae.hand_overs,
        rebuilds=parts.score.rebuilds + parts.vae.rebuilds,
        lead=duration.to_proto(parts.pacer.lead_seconds),
        buffered_speech=duration.to_proto(parts.chunker.buffered_seconds),
        av_skew=duration.to_proto(playout.skew_seconds),
        stages=[
            avatar_pb2.StageTime(stage=name, time=duration.to_proto(seconds))
            for name, seconds in (
                ("score", parts.score.mean_seconds),
                ("vae", parts.vae.mean_seconds),
            )
        ],
    )
    if playout.first_frame_seconds is not None:
        message.first_frame.CopyFrom(duration.to_proto(playout.first_frame_seconds))
    if playout.answer_seconds is not None:
        message.answer.CopyFrom(duration.to_proto(playout.answer_seconds))
    return message
