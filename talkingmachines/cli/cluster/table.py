"""A release in a cluster at one moment, for people and for programs.

Above `reading`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group
from rich.table import Table

from talkingmachines.cli.cluster.reading import Object, Seen

_PART = "app.kubernetes.io/component"
_SESSIONS = "controller.kubernetes.io/pod-deletion-cost"
_NODE = "ray.io/node-type"


@dataclass(frozen=True, slots=True)
class Part:
    """Pods that do the same."""

    name: str
    ready: int
    pods: int
    restarts: int
    sessions: int | None  # that they published; None: they publish none


@dataclass(frozen=True, slots=True)
class Application:
    """Score or VAE, as Serve has it."""

    name: str
    state: str
    workers: int  # pods of its Ray cluster that are ready
    wanted: int
    endpoints: int  # of these, that take calls


@dataclass(frozen=True, slots=True)
class Standing:
    """The release at one moment."""

    namespace: str
    release: str
    parts: list[Part]
    applications: list[Application]


def standing(seen: Seen) -> Standing:
    groups: dict[str, list[Object]] = {}
    for pod in seen.pods:
        groups.setdefault(_part_of(pod), []).append(pod)
    return Standing(
        seen.namespace,
        seen.release,
        [_part(name, pods) for name, pods in sorted(groups.items())],
        [found for engine in seen.engines or [] for found in _applications(engine)],
    )


def _part_of(pod: Object) -> str:
    labels = pod["metadata"]["labels"]
    return " ".join(filter(None, (labels.get(_PART, "?"), labels.get(_NODE, ""))))


def _part(name: str, pods: list[Object]) -> Part:
    costs = [pod["metadata"].get("annotations", {}).get(_SESSIONS) for pod in pods]
    told = [int(cost) for cost in costs if cost is not None]
    return Part(
        name,
        ready=sum(_ready(pod) for pod in pods),
        pods=len(pods),
        restarts=sum(
            container.get("restartCount", 0)
            for pod in pods
            for container in (pod.get("status") or {}).get("containerStatuses") or []
        ),
        sessions=sum(told) if told else None,
    )


def _ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _applications(engine: Object) -> list[Application]:
    status = engine.get("status") or {}
    serving = status.get("activeServiceStatus") or status.get("pendingServiceStatus") or {}
    cluster = serving.get("rayClusterStatus") or {}
    return [
        Application(
            name,
            str(state.get("status")),
            int(cluster.get("readyWorkerReplicas") or 0),
            int(cluster.get("desiredWorkerReplicas") or 0),
            int(status.get("numServeEndpoints") or 0),
        )
        for name, state in (serving.get("applicationStatuses") or {}).items()
    ]


def shown(standing: Standing) -> Group:
    """For a person."""
    title = f"{standing.release} in {standing.namespace}"
    parts = Table("part", "ready", "restarts", "sessions", title=title)
    for part in standing.parts:
        sessions = "" if part.sessions is None else str(part.sessions)
        parts.add_row(part.name, f"{part.ready} of {part.pods}", str(part.restarts), sessions)
    applications = Table("application", "state", "workers ready", "endpoints", title="engines")
    for one in standing.applications:
        workers = f"{one.workers} of {one.wanted}"
        applications.add_row(one.name, one.state, workers, str(one.endpoints))
    return Group(parts, applications)
