"""Tell Kubernetes how many sessions this gateway holds, so that scaling down takes the emptiest.

Beside the path: leases → **deletion cost** → Kubernetes' API. The number is an annotation of this
pod, read by whoever must choose a pod to delete. It is written through the pod's status: the right
to do that does not let anybody change what a pod runs. Written seldom, for every change of a pod is
told to many; and whatever goes wrong with it, calls never notice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
from pydantic import Field, PositiveFloat

from services.runtime.settings import Nested

if TYPE_CHECKING:
    from kubernetes.aio.client import CoreV1Api

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

_ANSWER_SECONDS = 5.0
_LONGEST_PAUSE = 600.0

_log = structlog.stdlib.get_logger(__name__)


class Pod(Nested):
    """This pod, as Kubernetes tells it of itself. Given: its sessions are published."""

    name: Annotated[str, Field(min_length=1)]
    namespace: Annotated[str, Field(min_length=1)]
    every_seconds: PositiveFloat = 20.0  # between two writes at least
    credentials: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # token, ca.crt


class DeletionCost:
    """Publishes for as long as it runs.

    Args:
        sessions: how many this gateway holds now.
    """

    def __init__(self, api: CoreV1Api, pod: Pod, sessions: Callable[[], int]) -> None:
        self._api = api
        self._pod = pod
        self._sessions = sessions
        self._written: int | None = None
        self._failures = 0

    async def publish(self) -> None:
        """Write the number down whenever it has changed, again and again."""
        while True:
            if self._sessions() != self._written:
                await self._try()
            pause = min(self._pod.every_seconds * 2**self._failures, _LONGEST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # gateways begin together

    async def _try(self) -> None:
        sessions = self._sessions()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._write(sessions)
        except Exception as error:  # noqa: BLE001  nothing that a cluster says may end calls
            self._failures += 1
            if self._failures == 1:
                _log.warning("sessions cannot be published", why=_reason(error))
            return
        if self._failures:
            _log.warning("sessions are published again")
        self._written, self._failures = sessions, 0

    async def _write(self, sessions: int) -> None:
        body = {"metadata": {"annotations": {ANNOTATION: str(sessions)}}}
        await self._api.patch_namespaced_pod_status(
            self._pod.name,
            self._pod.namespace,
            body,
            _content_type="application/merge-patch+json",
        )


@asynccontextmanager
async def deletion_cost(
    pod: Pod, sessions: Callable[[], int], *, environment: Mapping[str, str]
) -> AsyncIterator[DeletionCost]:
    """Connected to the cluster that this process runs in, while entered.

    Takes seconds: the client is large. Enter it before anybody is served.

    Args:
        environment: where Kubernetes says where its API is.

    Raises:
        CannotPublish: there is no cluster around this process, or no package to talk to it.
    """
    try:
        from kubernetes.aio.client import ApiClient, Configuration, CoreV1Api
        from kubernetes.aio.config import ConfigException
        from kubernetes.aio.config.incluster_config import InClusterConfigLoader
    except ImportError as error:
        raise CannotPublish("pod: needs pip install 'talkingmachines[cluster]'") from error

    files = {
        "token_filename": str(pod.credentials / "token"),
        "cert_filename": str(pod.credentials / "ca.crt"),
    }
    configuration = Configuration()
    try:
        InClusterConfigLoader(**files, environ=environment).load_and_set(configuration)
    except (ConfigException, OSError) as error:
        raise CannotPublish(f"pod: no cluster is around this process: {error}") from error
    async with ApiClient(configuration) as client:
        yield DeletionCost(CoreV1Api(client), pod, sessions)


class CannotPublish(Exception):
    """The gateway is told of a pod that it is not in."""


def _reason(error: Exception) -> str:
    """What an API answered, without what it was sent."""
    status, reason = getattr(error, "status", None), getattr(error, "reason", None)
    return f"{status} {reason}" if status else f"{type(error).__name__}: {error}"[:200]
