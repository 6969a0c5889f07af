"""Calls: what users feel."""

from __future__ import annotations

from helm.dashboards.parts import Board, Panel, Query, Row, quantiles, rate, recorded, total

CALLS = Board(
    "calls",
    "talkingmachines / Calls",
    (
        Row(
            "Waiting",
            (
                Panel(
                    "First frame",
                    "From a session's opening to its first picture.",
                    "s",
                    (
                        *quantiles("tm_first_frame_seconds"),
                        recorded("namespace:tm_first_frame_seconds:p90_5m", "alerted on"),
                    ),
                    limit=3,
                ),
                Panel(
                    "Answer",
                    "From the end of the user's speech to the answer's first picture.",
                    "s",
                    (
                        *quantiles("tm_answer_seconds"),
                        recorded("namespace:tm_answer_seconds:p90_5m", "alerted on"),
                    ),
                    limit=3,
                ),
                Panel(
                    "Interruption to silence",
                    "How long characters go on when they are interrupted.",
                    "s",
                    quantiles("tm_interrupt_to_silence_seconds"),
                    limit=0.5,
                ),
            ),
        ),
        Row(
            "Watching",
            (
                Panel(
                    "Time held",
                    "Share of watched time in which the picture stood still.",
                    "percentunit",
                    (recorded("namespace:tm_playout_stall:ratio_rate5m", "held"),),
                    limit=0.02,
                ),
                Panel(
                    "Chunks too late",
                    "Share of chunks that were not ready when they should play.",
                    "percentunit",
                    (
                        recorded("namespace:tm_chunk_deadline_misses:ratio_rate5m", "5 minutes"),
                        recorded("namespace:tm_chunk_deadline_misses:ratio_rate1h", "an hour"),
                    ),
                    limit=0.01,
                ),
                Panel(
                    "Holds",
                    "How often pictures were held, and for how long each time.",
                    "short",
                    (
                        rate("tm_playout_stalls_total"),
                        *quantiles("tm_playout_stall_length_seconds"),
                    ),
                ),
                Panel(
                    "Sound and picture",
                    "How far apart they leave.",
                    "s",
                    (
                        *quantiles("tm_av_skew_seconds"),
                        recorded("namespace:tm_av_skew_seconds:p99_5m", "alerted on"),
                    ),
                    limit=0.08,
                ),
            ),
        ),
        Row(
            "Where a chunk's time goes",
            (
                Panel(
                    "Chunk by stage",
                    "Mean time in each stage, as the gateway sees it.",
                    "s",
                    (
                        Query(
                            'sum by (stage) (rate(tm_chunk_seconds_sum{namespace="$namespace"}'
                            "[$__rate_interval])) / sum by (stage) (rate(tm_chunk_seconds_count"
                            '{namespace="$namespace"}[$__rate_interval]))',
                            "{{stage}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Speed",
                    "Time to make a chunk over the time it lasts: at 1 nothing is left.",
                    "short",
                    quantiles("tm_chunk_realtime_ratio"),
                    limit=1,
                ),
                Panel(
                    "Lead and rhythm",
                    "Media ready ahead of playout, and time between chunks.",
                    "s",
                    (
                        *quantiles("tm_playout_lead_seconds"),
                        *quantiles("tm_chunk_interarrival_seconds"),
                    ),
                ),
            ),
        ),
        Row(
            "WebRTC",
            (
                Panel(
                    "Connections",
                    "By what they are for; calls that ended a second, by reason.",
                    "short",
                    (
                        total("tm_webrtc_connections", "role"),
                        rate("tm_webrtc_call_end_total", "reason"),
                    ),
                ),
                Panel(
                    "Network",
                    "Round trip, and time to connect.",
                    "s",
                    (
                        *quantiles("tm_webrtc_round_trip_seconds"),
                        *quantiles("tm_webrtc_connect_seconds"),
                    ),
                ),
                Panel(
                    "Packets",
                    "Of pictures, sent and lost a second.",
                    "short",
                    (rate("tm_webrtc_packets_total"), rate("tm_webrtc_packets_lost_total")),
                ),
                Panel(
                    "Encoders",
                    "Key frames asked for and sent, changes of bit rate, processor time of sound.",
                    "short",
                    (
                        rate("tm_webrtc_key_frame_requests_total"),
                        rate("tm_webrtc_key_frames_total"),
                        rate("tm_webrtc_bitrate_changes_total"),
                        rate("tm_webrtc_encode_seconds_total"),
                    ),
                ),
            ),
        ),
        Row(
            "Coming and going",
            (
                Panel(
                    "Opened and ended",
                    "Sessions a second; ends by reason.",
                    "reqps",
                    (
                        rate("tm_sessions_opened_total", "mode"),
                        rate("tm_session_end_total", "reason"),
                    ),
                ),
                Panel(
                    "Turned away",
                    "By reason; the share is of those whom we had no right to refuse.",
                    "short",
                    (
                        rate("tm_refusals_total", "reason"),
                        recorded("namespace:tm_refusals:ratio_rate5m", "share"),
                        recorded(
                            "namespace:tm_session_failures:ratio_rate15m", "share that failed"
                        ),
                    ),
                ),
                Panel(
                    "Resumed",
                    "Clients that came back to their session.",
                    "reqps",
                    (rate("tm_resumes_total", "outcome"),),
                ),
                Panel(
                    "Length",
                    "Of sessions that ended.",
                    "s",
                    quantiles("tm_session_seconds"),
                ),
            ),
        ),
        Row(
            "Sent",
            (
                Panel(
                    "Frames",
                    "To clients, and dropped on the way.",
                    "short",
                    (
                        rate("tm_frames_total", "transport"),
                        rate("tm_frames_dropped_total", "reason"),
                    ),
                ),
                Panel(
                    "Chunks and viewers",
                    "Chunks played a second by mode; who watches.",
                    "short",
                    (rate("tm_chunks_total", "mode"), total("tm_viewers", "transport")),
                ),
            ),
        ),
        Row(
            "Conversation",
            (
                Panel(
                    "Answer by stage",
                    "What the bridge spends an answer's time on.",
                    "s",
                    quantiles("tm_speech_stage_seconds", "stage"),
                ),
                Panel(
                    "Turns",
                    "Answers by how they ended, and interruptions.",
                    "reqps",
                    (rate("tm_turns_total", "outcome"), rate("tm_interruptions_total", "kind")),
                ),
                Panel(
                    "Speech model",
                    "Whether it is there, who talks to it, and its errors.",
                    "short",
                    (
                        Query('min (tm_provider_up{namespace="$namespace"})', "up"),
                        total("tm_conversations"),
                        rate("tm_provider_connects_total", "outcome"),
                        rate("tm_provider_errors_total"),
                    ),
                ),
            ),
        ),
    ),
)
