"""`talkingmachines status`: the fleet as its metrics show it, once or live.

Every process tells its own numbers at `/metrics`; a fleet of this machine leaves a notice of where
those are. Times are means since the last look, or since the start at the first one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from talkingmachines.cli.console import OUT
from talkingmachines.errors import BadInput, Unavailable
from talkingmachines.local import data_folder, running_fleet

_TIMEOUT_SECONDS = 5.0  # a port without anybody is refused at once
_EVERY_SECONDS = 1.0

Labels = frozenset[tuple[str, str]]
Samples = Mapping[tuple[str, Labels], float]


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of score or VAE."""

    service: str
    where: str
    attached: int
    slots: int
    busy_seconds: float
    stage_seconds: dict[str, float]  # of a step, by stage


@dataclass(frozen=True, slots=True)
class Standing:
    """The fleet at one moment."""

    gateways: int
    sessions: dict[str, int]  # by state; states that nobody is in are left out
    capacity: int
    queued: int
    stage_seconds: dict[str, float]  # of a chunk, as the gateways see it
    deadline_misses: int
    stalls: int
    hand_overs: int
    rebuilds: int
    refusals: int
    store_up: bool
    replicas: list[Replica] = field(default_factory=list)


async def status(addresses: Sequence[str], *, watch: bool, as_json: bool) -> None:
    """Show it, once or until Ctrl-C.

    Raises:
        Unavailable: nobody answers.
        BadInput: no fleet runs here, and no address was given.
    """
    told = _known(addresses)
    before: dict[str, Samples] = {}
    now = await _scraped(told)
    if as_json:
        print(json.dumps(asdict(standing(now, before))))
        return
    if not watch:
        OUT.print(shown(standing(now, before)))
        return
    with Live(shown(standing(now, before)), console=OUT, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            before, now = now, await _scraped(told)
            live.update(shown(standing(now, before)), refresh=True)


def _known(addresses: Sequence[str]) -> Sequence[str]:
    if addresses:
        return addresses
    fleet = running_fleet(data_folder())
    if fleet is None:
        raise BadInput("metrics", got="nothing", expected="addresses, as no fleet runs here")
    return [address for service in fleet.metrics.values() for address in service]


async def _scraped(addresses: Sequence[str]) -> dict[str, Samples]:
    """What those say that answer."""
    pages = await asyncio.gather(*(_page(address) for address in addresses))
    found = {
        address: samples(page)
        for address, page in zip(addresses, pages, strict=True)
        if page is not None
    }
    if not found:
        raise Unavailable(f"no metrics at {', '.join(addresses)}"[:300], retry_after=1.0)
    return found


async def _page(address: str) -> str | None:
    """`/metrics` of one process, or None when there is none."""
    host, _, port = address.rpartition(":")
    request = f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request.encode())
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError, ValueError):
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    return body.decode() if b" 200 " in head.partition(b"\r\n")[0] else None


def samples(page: str) -> Samples:
    """A page of the Prometheus text format, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def standing(now: Mapping[str, Samples], before: Mapping[str, Samples]) -> Standing:
    """What all pages say together.

    Args:
        before: the last look; means are over the time since.
    """
    gateways = {where: page for where, page in now.items() if any(_named(page, "tm_sessions"))}
    whole = _added(gateways.values())
    past = _added(before[where] for where in gateways if where in before)
    sessions = {
        dict(labels)["state"]: int(value) for labels, value in _named(whole, "tm_sessions") if value
    }
    return Standing(
        gateways=len(gateways),
        sessions=sessions,
        capacity=int(_total(whole, "tm_session_capacity")),
        queued=int(_total(whole, "tm_queue_sessions")),
        stage_seconds=_means(whole, past, "tm_chunk_seconds"),
        deadline_misses=int(_total(whole, "tm_chunk_deadline_misses_total")),
        stalls=int(_total(whole, "tm_playout_stalls_total")),
        hand_overs=int(_total(whole, "tm_hand_overs_total")),
        rebuilds=int(_total(whole, "tm_rebuilds_total")),
        refusals=int(_total(whole, "tm_refusals_total")),
        store_up=all(_total(page, "tm_store_up") for page in gateways.values()),
        replicas=[
            _replica(where, page, before.get(where, {}))
            for where, page in now.items()
            if where not in gateways
            and any(_named(page, "tm_engine_slots"))  # nor is the bridge one
        ],
    )


def _replica(where: str, page: Samples, past: Samples) -> Replica:
    services = {
        dict(labels)["engine"] for labels, value in _named(page, "tm_engine_slots") if value
    }
    return Replica(
        service=", ".join(sorted(services)) or "?",
        where=where,
        attached=int(_total(page, "tm_engine_slots_used")),
        slots=int(_total(page, "tm_engine_slots")),
        busy_seconds=_total(page, "tm_device_busy_seconds_total")
        - _total(past, "tm_device_busy_seconds_total"),
        stage_seconds=_means(page, past, "tm_engine_step_seconds"),
    )


def _named(page: Samples, name: str) -> Iterator[tuple[Labels, float]]:
    return ((labels, value) for (known, labels), value in page.items() if known == name)


def _total(page: Samples, name: str) -> float:
    return sum(value for _, value in _named(page, name))


def _added(pages: Any) -> Samples:
    whole: dict[tuple[str, Labels], float] = {}
    for page in pages:
        for key, value in page.items():
            whole[key] = whole.get(key, 0.0) + value
    return whole


def _means(page: Samples, past: Samples, name: str) -> dict[str, float]:
    """Mean of a histogram's new observations, by stage; stages without any are left out."""
    found: dict[str, float] = {}
    for labels, count in _named(page, f"{name}_count"):
        new = count - past.get((f"{name}_count", labels), 0.0)
        if new > 0:
            key = (f"{name}_sum", labels)
            found[dict(labels)["stage"]] = round((page[key] - past.get(key, 0.0)) / new, 4)
    return found


def shown(standing: Standing) -> Group:
    """For a person."""
    fleet = Table(title="fleet", show_header=False)
    states = ", ".join(f"{count} {state}" for state, count in standing.sessions.items())
    capacity = f" of {standing.capacity}" if standing.capacity else ""
    fleet.add_row("gateways", str(standing.gateways))
    fleet.add_row("sessions", f"{states or 'none'}{capacity}")
    fleet.add_row("waiting", str(standing.queued))
    fleet.add_row("a chunk", _times(standing.stage_seconds))
    fleet.add_row("late chunks, stalls", f"{standing.deadline_misses}, {standing.stalls}")
    fleet.add_row("hand-overs, rebuilds", f"{standing.hand_overs}, {standing.rebuilds}")
    fleet.add_row("refusals", str(standing.refusals))
    fleet.add_row("Redis", "answers" if standing.store_up else Text("does not answer", "red"))
    engines = Table("replica", "metrics", "attached", "slots", "a step", title="engines")
    for one in standing.replicas:
        attached, slots = str(one.attached), str(one.slots)
        engines.add_row(one.service, one.where, attached, slots, _times(one.stage_seconds))
    return Group(fleet, engines)


def _times(seconds: Mapping[str, float]) -> str:
    texts = [f"{stage} {1000 * value:.0f} ms" for stage, value in seconds.items()]
    return ", ".join(texts) or "none yet"
