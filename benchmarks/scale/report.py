"""The recorded results as the tables of docs/scale.md: python -m benchmarks.scale.report"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.record import Figure, read

Row = Mapping[str, Any]


def main() -> None:
    kept = read("scale")
    results: Mapping[str, Row] = {} if kept is None else kept.details
    for kind, rows in {
        "steady": steady,
        "crowd": crowd,
        "zone": zone,
        "upgrade": upgrade,
    }.items():
        found = {name: row for name, row in results.items() if name.startswith(kind)}
        if found:
            print(f"\n## {kind}\n")
            print("\n".join(table(rows, found)))


def figures(results: Mapping[str, Row]) -> dict[str, Figure]:
    """What is followed from run to run: a session's load on Redis."""
    return {
        f"Redis operations of a call, {name}": Figure(
            row["redis"]["operations_per_session_second"], "a second"
        )
        for name, row in results.items()
        if name.startswith("steady")
    }


def table(columns: Callable[[Row], Mapping[str, Any]], rows: Mapping[str, Row]) -> Iterable[str]:
    shown = {name: columns(row) for name, row in rows.items()}
    names = list(next(iter(shown.values())))
    yield f"| | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for name, cells in shown.items():
        yield f"| {name} | {' | '.join(str(cell) for cell in cells.values())} |"


def steady(row: Row) -> Mapping[str, Any]:
    redis, spots = row["redis"], row["hot_spots"]
    return {
        "gateways": row["fleet"]["gateways"],
        "Redis operations/s": redis["operations_per_second"],
        "MB/s": round(redis["bytes_per_second"] / 1e6, 1),
        "operations/s a call": redis["operations_per_session_second"],
        "kB/s a call": round(redis["bytes_per_session_second"] / 1e3),
        "Redis busy (model)": redis["busy_by_the_model"],
        "timeouts": redis["timeouts"],
        "fullest gateway / mean": spots["gateways"]["fullest_over_mean"],
        "fullest score / mean": spots["score"]["fullest_over_mean"],
        "score beyond slots": spots["score"]["share_beyond_slots"],
        "hand-overs/s": row["hand_overs"]["per_second"],
        "most in a second": row["hand_overs"]["most_in_a_second"],
        "variance / mean": row["hand_overs"]["variance_over_mean"],
        "calls with a stall": row["stalls"]["callers_with_any"],
    }


def crowd(row: Row) -> Mapping[str, Any]:
    return {
        "callers": row["callers"],
        "places": row["places"],
        "most at once": row["most_at_once"],
        "places used while somebody waits": row["sessions_while_somebody_waits"]["mean"],
        "waited p50, p99 (s)": pair(row["waited"]),
        "overtaken": row["overtaken"],
        "refused": sum(row["ended"].values()),
        "Redis operations/s at most": row["redis"]["operations_per_second_at_most"],
    }


def zone(row: Row) -> Mapping[str, Any]:
    stalls = row["stalls"]
    return {
        "calls": row["sessions"],
        "ended": sum(row["ended"].values()),
        "resumed elsewhere": row["resumed_at_another_gateway"],
        "with a stall": stalls["callers_with_any"],
        "stall p50, p99 (s)": pair(stalls["seconds_per_caller"]),
        "longest (s)": stalls["seconds_per_caller"]["most"],
        "last stall after (s)": row["seconds_to_the_last_stall"],
        "attachments/s at most": row["attachments_a_second_at_most"],
        "Redis MB/s at most": round(row["redis"]["bytes_per_second_at_most"] / 1e6),
    }


def upgrade(row: Row) -> Mapping[str, Any]:
    engines, gateways = row["engines"], row["gateways"]
    return {
        "calls": row["sessions"],
        "ended": sum(row["ended"].values()),
        "engines: with a stall": engines["stalls"]["callers_with_any"],
        "attachments cut off": engines["attachments_cut_off"],
        "hand-overs/s": engines["hand_overs"]["per_second"],
        "most in a second": engines["hand_overs"]["most_in_a_second"],
        "gateways: with a stall": gateways["stalls"]["callers_with_any"],
        "longest (s)": gateways["stalls"]["seconds_per_caller"]["most"],
        "old connection ended first": gateways["broken_connections"],
    }


def pair(quantiles: Row) -> str:
    return f"{quantiles.get('p50', 0)}, {quantiles.get('p99', 0)}"


if __name__ == "__main__":
    main()
