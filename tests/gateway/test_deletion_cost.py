"""A gateway writes on its pod how many sessions it holds: official client, one right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.gateway.deletion_cost import ANNOTATION, CannotPublish, Pod, deletion_cost
from tests.gateway.fleet import eventually
from tests.helm.api_server import May, Store, api_server
from tests.helm.chart import manifests, of_kind
from tests.runtime.certificates import Authority

KEY = ("v1", "pods", "characters", "gateway-0")
FLEET = ("gpu-fleet",)


def rights() -> May:
    """What the Role in the chart lets a gateway do."""
    (role,) = of_kind(manifests(*FLEET), "Role").values()

    def may(verb: str, group: str, resource: str) -> bool:
        return any(
            verb in rule["verbs"] and group in rule["apiGroups"] and resource in rule["resources"]
            for rule in role["rules"]
        )

    return may


class Cluster:
    """An API with TLS, one pod, and what is mounted in it."""

    def __init__(self, store: Store, folder: Path, address: tuple[str, str]) -> None:
        self.store = store
        self.pod = Pod(
            name="gateway-0", namespace="characters", every_seconds=0.05, credentials=folder
        )
        self.environment = dict(
            zip(("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"), address, strict=True)
        )
        spec = {"containers": [{"name": "gateway", "image": "gateway:1"}]}
        store.create(KEY, {"metadata": {"name": "gateway-0"}, "spec": spec})

    @property
    def cost(self) -> str | None:
        annotations = self.store.get(KEY)["metadata"].get("annotations", {})
        found: str | None = annotations.get(ANNOTATION)
        return found

    @asynccontextmanager
    async def publishing(self, sessions: Callable[[], int]) -> AsyncIterator[None]:
        made = deletion_cost(self.pod, sessions, environment=self.environment)
        async with made as cost:
            task = asyncio.create_task(cost.publish())
            try:
                yield
                assert not task.done(), "it goes on, whatever happens"
            finally:
                task.cancel()
                await asyncio.wait({task})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    authority = Authority(tmp_path, "ca")
    (tmp_path / "ca.crt").write_bytes(authority.file.read_bytes())
    (tmp_path / "token").write_text("a-token")
    with api_server(tmp_path, certificate=authority.issue("api")) as (store, _):
        yield Cluster(store, tmp_path, ("127.0.0.1", store.port))


async def test_the_pod_says_how_many_sessions_it_holds(cluster: Cluster) -> None:
    held = 3
    cluster.store.may = rights()
    spec = cluster.store.get(KEY)["spec"]
    async with cluster.publishing(lambda: held):
        await eventually(lambda: cluster.cost == "3")
        asked = len(cluster.store.asked)
        await asyncio.sleep(0.3)
        assert len(cluster.store.asked) == asked, "what has not changed is not written again"
        held = 0
        await eventually(lambda: cluster.cost == "0")
    assert cluster.store.get(KEY)["spec"] == spec
    path = "/api/v1/namespaces/characters/pods/gateway-0/status"
    assert set(cluster.store.asked) == {("PATCH", path, "bearer a-token")}


async def test_an_api_that_fails_is_asked_less_and_less_and_hurts_nobody(cluster: Cluster) -> None:
    cluster.store.may = lambda *_: False
    async with cluster.publishing(lambda: 1):
        await eventually(lambda: len(cluster.store.asked) == 3)
        asked = len(cluster.store.asked)
        await asyncio.sleep(0.2)  # the next pause is 0.4 s; without, it would be asked 4 times
        assert len(cluster.store.asked) <= asked + 1
        cluster.store.may = rights()
        await eventually(lambda: cluster.cost == "1")


async def test_who_is_in_no_cluster_is_told_at_start(tmp_path: Path) -> None:
    pod = Pod(name="gateway-0", namespace="characters", credentials=tmp_path)
    with pytest.raises(CannotPublish, match="no cluster is around this process"):
        async with deletion_cost(pod, lambda: 0, environment={}):
            pass
