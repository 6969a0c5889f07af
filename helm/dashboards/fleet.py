"""Fleet: room, moves, and what holds it together."""

from __future__ import annotations

from helm.dashboards.parts import Board, Panel, Query, Row, quantiles, rate, recorded, total

FLEET = Board(
    "fleet",
    "talkingmachines / Fleet",
    (
        Row(
            "Room",
            (
                Panel(
                    "Sessions and places",
                    "Sessions by state under what the fleet can carry.",
                    "short",
                    (
                        total("tm_sessions", "state"),
                        recorded("namespace:tm_session_capacity:max", "places"),
                    ),
                ),
                Panel(
                    "Taken",
                    "Share of places and of each engine's slots.",
                    "percentunit",
                    (
                        recorded("namespace:tm_capacity_used:ratio", "places"),
                        recorded(
                            "namespace_engine:tm_engine_slots_used:ratio", "slots of {{engine}}"
                        ),
                    ),
                    limit=0.9,
                ),
                Panel(
                    "Replicas",
                    "That offer slots, by engine; gateways by the sessions that they lease.",
                    "short",
                    (
                        Query(
                            'count by (engine) (tm_engine_slots{namespace="$namespace"} > 0)',
                            "{{engine}}",
                        ),
                        Query('count (tm_leases{namespace="$namespace"})', "gateways"),
                    ),
                ),
                Panel(
                    "Queue",
                    "Who waits, and how long those waited who got in.",
                    "short",
                    (total("tm_queue_sessions"), *quantiles("tm_queue_wait_seconds")),
                ),
            ),
        ),
        Row(
            "Moves",
            (
                Panel(
                    "Hand-overs",
                    "Sessions that moved to another replica, by engine and reason.",
                    "reqps",
                    (rate("tm_hand_overs_total", "engine, reason, outcome"),),
                ),
                Panel(
                    "Hand-overs that failed",
                    "Share, by engine.",
                    "percentunit",
                    (
                        recorded(
                            "namespace_engine:tm_hand_over_failures:ratio_rate15m", "{{engine}}"
                        ),
                    ),
                    limit=0.02,
                ),
                Panel(
                    "Rebuilt",
                    "States made anew from the log after a break.",
                    "reqps",
                    (rate("tm_rebuilds_total", "engine, reason"),),
                ),
                Panel(
                    "Attaching",
                    "Until a new attachment stands, as gateways see it; and how many there are.",
                    "s",
                    (*quantiles("tm_attach_seconds", "engine"), total("tm_attachments", "engine")),
                ),
            ),
        ),
        Row(
            "Store",
            (
                Panel(
                    "Redis",
                    "Commands: time, errors, and whether it answers.",
                    "short",
                    (
                        *quantiles("tm_store_seconds"),
                        rate("tm_store_errors_total"),
                        Query('min (tm_store_up{namespace="$namespace"})', "up"),
                    ),
                ),
                Panel(
                    "Leases",
                    "Held by each gateway, and lost to others.",
                    "short",
                    (total("tm_leases", "pod"), rate("tm_leases_lost_total")),
                ),
                Panel(
                    "Logs of sessions",
                    "Memory that gateways hold for them.",
                    "bytes",
                    (total("tm_session_log_bytes", "pod"),),
                ),
                Panel(
                    "Characters made",
                    "How many a second, and how long it takes.",
                    "short",
                    (
                        rate("tm_avatars_created_total", "outcome"),
                        *quantiles("tm_avatar_create_seconds"),
                    ),
                ),
            ),
        ),
        Row(
            "Calls of procedures",
            (
                Panel(
                    "Ended",
                    "By method and status.",
                    "reqps",
                    (rate("tm_rpc_handled_total", "method, code"),),
                ),
                Panel(
                    "Begun and running",
                    "By method.",
                    "short",
                    (rate("tm_rpc_started_total", "method"), total("tm_rpc_in_flight", "method")),
                ),
                Panel(
                    "Time",
                    "Of unary calls, and of streams.",
                    "s",
                    (
                        *quantiles("tm_rpc_seconds", "method"),
                        *quantiles("tm_rpc_stream_seconds", "method"),
                    ),
                ),
            ),
        ),
    ),
)
