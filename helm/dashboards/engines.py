"""Engines: where score's and VAE's time and memory go."""

from __future__ import annotations

from helm.dashboards.parts import HERE, Board, Panel, Query, Row, quantiles, rate, recorded, total

ENGINES = Board(
    "engines",
    "talkingmachines / Engines",
    (
        Row(
            "Time",
            (
                Panel(
                    "Step by stage",
                    "Mean time of a step in each stage.",
                    "s",
                    (
                        Query(
                            f"sum by (engine, stage) (rate(tm_engine_step_seconds_sum{{{HERE}}}"
                            "[$__rate_interval])) / sum by (engine, stage) "
                            f"(rate(tm_engine_step_seconds_count{{{HERE}}}[$__rate_interval]))",
                            "{{engine}} {{stage}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Step, all of it",
                    "Distribution by stage.",
                    "s",
                    quantiles("tm_engine_step_seconds", "stage"),
                ),
                Panel(
                    "Chunks done too late",
                    "Share of chunks done after their playout deadline.",
                    "percentunit",
                    (
                        Query(
                            f"sum by (engine) (rate(tm_engine_late_chunks_total{{{HERE}}}"
                            "[$__rate_interval])) / sum by (engine) "
                            f"(rate(tm_engine_chunks_total{{{HERE}}}[$__rate_interval]))",
                            "{{engine}}",
                        ),
                    ),
                    limit=0.02,
                ),
                Panel(
                    "Device busy",
                    "Share of time in steps: by engine, and by pod.",
                    "percentunit",
                    (
                        recorded("namespace_engine:tm_device_busy:ratio_rate5m", "{{engine}}"),
                        rate("tm_device_busy_seconds_total", "pod"),
                    ),
                    limit=0.9,
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel(
                    "Chunks",
                    "A second, by engine.",
                    "reqps",
                    (rate("tm_engine_chunks_total", "engine"),),
                ),
                Panel(
                    "Together",
                    "Sessions computed in one step.",
                    "short",
                    quantiles("tm_engine_batch_sessions", "engine"),
                ),
                Panel(
                    "Waiting for the device",
                    "Pieces of work, and how long the running step has given no sign.",
                    "short",
                    (
                        total("tm_device_waiting", "engine"),
                        Query(
                            f"max by (engine) (tm_device_stalled_seconds{{{HERE}}})",
                            "{{engine}} without a sign (s)",
                        ),
                    ),
                ),
                Panel(
                    "Slots",
                    "Taken and offered, by engine.",
                    "short",
                    (total("tm_engine_slots_used", "engine"), total("tm_engine_slots", "engine")),
                ),
            ),
        ),
        Row(
            "Memory",
            (
                Panel(
                    "Device memory",
                    "Used and there, by pod.",
                    "bytes",
                    (total("tm_device_memory_bytes", "pod, kind"),),
                ),
                Panel(
                    "Caches", "Bytes held.", "bytes", (total("tm_cache_bytes", "engine, cache"),)
                ),
                Panel(
                    "Found in the cache",
                    "Share of look-ups.",
                    "percentunit",
                    (
                        recorded(
                            "namespace_engine_cache:tm_cache_hits:ratio_rate5m",
                            "{{engine}} {{cache}}",
                        ),
                    ),
                ),
                Panel(
                    "Not found, and given up",
                    "Look-ups that had to compute, entries that made room.",
                    "reqps",
                    (
                        rate("tm_cache_misses_total", "engine, cache"),
                        rate("tm_cache_evictions_total", "engine, cache"),
                    ),
                ),
            ),
        ),
        Row(
            "Trouble",
            (
                Panel(
                    "Attaching",
                    "Time to build a session's state from its log.",
                    "s",
                    quantiles("tm_engine_attach_seconds", "engine"),
                ),
                Panel(
                    "Turned away",
                    "Attachments, by reason.",
                    "reqps",
                    (rate("tm_engine_refusals_total", "engine, reason"),),
                ),
                Panel(
                    "Faults",
                    "Steps that failed, by kind.",
                    "reqps",
                    (rate("tm_engine_faults_total", "engine, kind"),),
                ),
            ),
        ),
    ),
)
