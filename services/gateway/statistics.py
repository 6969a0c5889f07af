"""How a session is doing, as its client is told once a second."""

from __future__ import annotations

from services.gateway.parts import Parts
from talkingmachines import duration
from talkingmachines.v1 import avatar_pb2


def statistics(parts: Parts, opened_at: float) -> avatar_pb2.Statistics:
    """Totals since the session was opened at loop time `opened_at`."""
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
    if playout.first_frame_at is not None:
        message.first_frame.CopyFrom(duration.to_proto(playout.first_frame_at - opened_at))
    return message
