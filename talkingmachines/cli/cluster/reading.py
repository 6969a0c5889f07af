"""What a cluster says of a release: plain objects, as its API has them.

Below `findings` and `table`, which read them. The only file that talks to Kubernetes; the client is
large and is imported when it is wanted.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from talkingmachines.errors import (
    BadInput,
    NotFound,
    PermissionDenied,
    TalkingMachinesError,
    Unauthenticated,
    Unavailable,
)

Object = Mapping[str, Any]

_ANSWER_SECONDS = 15.0
_NAME, _RELEASE = "app.kubernetes.io/name", "app.kubernetes.io/instance"
_RAY = {"group": "ray.io", "version": "v1", "plural": "rayservices"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look."""

    namespace: str | None = None  # None: the context's own
    release: str | None = None  # None: the one that is there
    context: str | None = None  # of the kubeconfig; None: its current one


@dataclass(frozen=True, slots=True)
class Seen:
    """A release as the API has it now."""

    namespace: str
    release: str
    engines: list[Object] | None  # RayServices; None: this cluster does not know the kind
    deployments: list[Object]
    pods: list[Object]
    autoscalers: list[Object]
    events: list[Object]  # warnings about any of these, newest first


async def seen(place: Place) -> Seen:
    """Look once.

    Raises:
        BadInput: the package is missing, no cluster is known, or several releases are there.
        NotFound: there is no release.
        Unavailable, Unauthenticated, PermissionDenied: as the API answers.
    """
    async with _connected(place) as (api, here):
        namespace = place.namespace or here
        where = {"namespace": namespace, "_request_timeout": _ANSWER_SECONDS}
        chosen = where | {"label_selector": _selector(place)}
        deployments = await api.items("AppsV1Api", "deployment", **chosen)
        release = _release(deployments, place, namespace)
        chosen["label_selector"] = f"{_NAME}=talkingmachines,{_RELEASE}={release}"
        pods = await api.items("CoreV1Api", "pod", **chosen)
        autoscalers = await api.items("AutoscalingV2Api", "horizontal_pod_autoscaler", **where)
        events = await api.items("CoreV1Api", "event", **where)
        engines = await _if_known(api.items("CustomObjectsApi", "custom_object", **chosen, **_RAY))
    ours = {item["metadata"]["name"] for item in [*deployments, *pods, *(engines or [])]}
    return Seen(
        namespace,
        release,
        engines,
        [item for item in deployments if _is_of(item, release)],
        pods,
        [item for item in autoscalers if item["spec"]["scaleTargetRef"]["name"] in ours],
        _warnings(events, ours),
    )


def _selector(place: Place) -> str:
    return f"{_NAME}=talkingmachines" + (f",{_RELEASE}={place.release}" if place.release else "")


def _is_of(item: Object, release: str) -> bool:
    return bool(item["metadata"]["labels"][_RELEASE] == release)


def _release(deployments: list[Object], place: Place, namespace: str) -> str:
    found = sorted({item["metadata"]["labels"][_RELEASE] for item in deployments})
    if not found:
        raise NotFound("release", f"{place.release or 'talkingmachines'} in {namespace}")
    if len(found) > 1:
        raise BadInput("--release", got="nothing", expected=f"one of {', '.join(found)}")
    return str(found[0])


def _warnings(events: list[Object], ours: set[str]) -> list[Object]:
    """Those about us, or about what was made for us, whose names begin with ours."""
    found = [
        event
        for event in events
        if event.get("type") == "Warning"
        and any(event["involvedObject"].get("name", "").startswith(name) for name in ours)
    ]
    return sorted(found, key=_when, reverse=True)


def _when(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


async def _if_known(asked: Awaitable[list[Object]]) -> list[Object] | None:
    try:
        return await asked
    except NotFound:  # the kind itself
        return None


class _Api:
    """The client, with plain objects for answers and our errors for refusals."""

    def __init__(self, package: Any, client: Any) -> None:
        self._package = package
        self._client = client

    async def items(self, api: str, kind: str, /, **arguments: Any) -> list[Object]:
        """All objects of a kind.

        Args:
            api, kind: as the client calls them.
        """
        # As they come: the client's own classes refuse what their version does not know.
        method = f"list_namespaced_{kind}_without_preload_content"
        asked = getattr(getattr(self._package, api)(self._client), method)
        try:
            answer = await asked(**arguments)
            text = await answer.text()
        except (OSError, TimeoutError) as error:  # those of the connection are among them
            what = f"the cluster does not answer: {str(error) or type(error).__name__}"
            raise Unavailable(what[:300], retry_after=5.0) from error
        if answer.status != HTTPStatus.OK:
            raise _meant(answer.status, f"{answer.reason}: {text[:300]}")
        plain: list[Object] = json.loads(text)["items"]
        return plain


def _meant(status: int, why: str) -> TalkingMachinesError:
    said = f"the cluster says {status} {why}"
    match status:
        case 401:
            return Unauthenticated(said)
        case 403:
            return PermissionDenied(said)
        case 404:
            return NotFound("resource", said)
        case _:
            return Unavailable(said, retry_after=5.0)


@asynccontextmanager
async def _connected(place: Place) -> AsyncIterator[tuple[_Api, str]]:
    """The cluster, and the namespace that its context is for."""
    try:
        from kubernetes.aio import client, config
    except ImportError as error:
        expected = "pip install 'talkingmachines[cluster]'"
        raise BadInput("--cluster", got="no kubernetes package", expected=expected) from error

    settings, file = client.Configuration(), os.environ.get("KUBECONFIG")
    try:
        known, current = config.list_kube_config_contexts(file)
        await config.load_kube_config(file, place.context, settings)
    except (config.ConfigException, OSError) as error:
        expected = "a kubeconfig that leads to a cluster (KUBECONFIG, --context)"
        raise BadInput("--cluster", got=str(error)[:200], expected=expected) from error
    named = [context for context in known if context["name"] == place.context] or [current]
    async with client.ApiClient(settings) as connected:
        yield _Api(client, connected), named[0]["context"].get("namespace") or "default"
