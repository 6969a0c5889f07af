"""`status --cluster` and `doctor --cluster` against an API in memory, by the official client.

The release is the one that the chart renders; its pods are in the states that clusters really get
into.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from talkingmachines.cli.app import app
from tests.helm.api_server import Object, Store, api_server
from tests.helm.chart import NAME, NAMESPACE, RELEASE, manifests

ENGINES = ("score", "vae")


class Release:
    """The objects of a release that runs well, to be spoilt."""

    def __init__(self, store: Store) -> None:
        self.store = store
        for manifest in deepcopy(manifests("gpu-fleet")):
            if manifest["kind"] == "Deployment":
                manifest["status"] = {"readyReplicas": manifest["spec"].get("replicas", 1)}
                self._put("apps/v1", "deployments", manifest)
            elif manifest["kind"] == "RayService":
                manifest["status"] = self._serving(manifest["metadata"]["name"])
                self._put("ray.io/v1", "rayservices", manifest)
        for part in ("gateway", "bridge"):
            self.pod(part, annotations={"controller.kubernetes.io/pod-deletion-cost": "3"})
        for engine in ENGINES:
            self.pod(engine, labels={"ray.io/node-type": "worker"})

    def _serving(self, name: str) -> Object:
        running = {"status": "RUNNING", "message": "", "serveDeploymentStatuses": {}}
        return {
            "serviceStatus": "Running",
            "numServeEndpoints": 2,
            "activeServiceStatus": {
                "applicationStatuses": {name.removeprefix(f"{NAME}-"): running},
                "rayClusterStatus": {"readyWorkerReplicas": 2, "desiredWorkerReplicas": 2},
            },
        }

    def engine(self, name: str) -> Object:
        key = ("ray.io/v1", "rayservices", NAMESPACE, f"{NAME}-{name}")
        status: Object = self.store.get(key)["status"]
        return status

    def pod(self, part: str, *, labels: Object | None = None, **meta: Any) -> Object:
        """A pod of a part, ready; returns its status."""
        status: Object = {"conditions": [{"type": "Ready", "status": "True"}]}
        given = {
            "app.kubernetes.io/name": "talkingmachines",
            "app.kubernetes.io/instance": RELEASE,
            "app.kubernetes.io/component": part,
        }
        metadata = {"name": f"{NAME}-{part}-0", "labels": given | (labels or {}), **meta}
        self._put("v1", "pods", {"metadata": metadata, "status": status})
        return status

    def spoil(self, part: str, **status: Any) -> None:
        key = ("v1", "pods", NAMESPACE, f"{NAME}-{part}-0")
        self.store.get(key)["status"] = status

    def warn(self, about: str, reason: str, message: str) -> None:
        event: Object = {"type": "Warning", "reason": reason, "message": message}
        event |= {"involvedObject": {"name": about}, "lastTimestamp": "2026-01-01T00:00:00Z"}
        name = f"{about}.{len(self.store.objects)}"
        self._put("v1", "events", event | {"metadata": {"name": name}})

    def _put(self, version: str, plural: str, manifest: Object) -> None:
        self.store.create((version, plural, NAMESPACE, manifest["metadata"]["name"]), manifest)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with api_server(tmp_path) as (store, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield store


@pytest.fixture
def release(store: Store) -> Release:
    return Release(store)


def typed(*words: str) -> tuple[int, Any, str]:
    """Exit code, what was said as JSON, and on standard error."""
    done = CliRunner().invoke(
        app, [*words, "--cluster", "-n", NAMESPACE, "--json"], catch_exceptions=False
    )
    said = json.loads(done.stdout) if done.stdout else None
    return done.exit_code, said, done.stderr


@pytest.mark.usefixtures("release")
def test_a_release_that_runs_well_has_nothing_wrong() -> None:
    code, findings, _ = typed("doctor")
    assert code == 0
    assert not [finding for finding in findings if finding["advice"]]
    assert {"score, score", "vae, vae"} <= {
        finding["what"].removeprefix(f"{NAME}-") for finding in findings
    }


@pytest.mark.usefixtures("release")
def test_status_counts_pods_sessions_and_engines() -> None:
    code, told, _ = typed("status")
    assert code == 0
    parts = {part["name"]: part for part in told["parts"]}
    gateway = parts["gateway"]
    assert (gateway["ready"], gateway["pods"], gateway["sessions"]) == (1, 1, 3)
    assert parts["score worker"]["sessions"] is None
    assert [(one["name"], one["workers"], one["endpoints"]) for one in told["applications"]] == [
        ("score", 2, 2),
        ("vae", 2, 2),
    ]


GPU = "0/5 nodes are available: 5 Insufficient nvidia.com/gpu."
WAITING = {
    "image": ("ImagePullBackOff", "Back-off pulling image", "image.registry"),
    "secret": ("CreateContainerConfigError", 'secret "talkingmachines-redis" not found', "Secret"),
    "crash": ("CrashLoopBackOff", "back-off 5m0s", f"-n {NAMESPACE} logs {NAME}-score-0 -c main"),
}


@pytest.mark.parametrize("kind", WAITING)
def test_a_container_that_waits_is_explained(kind: str, release: Release) -> None:
    reason, message, advice = WAITING[kind]
    waiting = {"name": "main", "state": {"waiting": {"reason": reason, "message": message}}}
    release.spoil("score", containerStatuses=[waiting])
    first = worst()
    assert (f"{NAME}-score-0, main", True) == (first["what"], first["failed"])
    assert message in first["found"]
    assert advice in first["advice"]


def test_a_pod_without_node_and_one_without_memory_are_explained(release: Release) -> None:
    lacking = {"type": "PodScheduled", "status": "False", "message": GPU}
    release.spoil("vae", conditions=[lacking])
    killed = {"name": "gateway", "lastState": {"terminated": {"reason": "OOMKilled"}}}
    release.spoil("gateway", containerStatuses=[killed])
    _, findings, _ = typed("doctor")
    told = {finding["what"].removeprefix(f"{NAME}-"): finding for finding in findings}
    assert "replicas.least" in told["vae-0"]["advice"]
    assert GPU in told["vae-0"]["found"]
    assert "limits.memory" in told["gateway-0, gateway"]["advice"]


def test_an_application_that_cannot_be_deployed_says_why(release: Release) -> None:
    (state,) = release.engine("score")["activeServiceStatus"]["applicationStatuses"].values()
    said = "Traceback ...\n\nBadSettings: model: no such folder: /models/score"
    state |= {"status": "DEPLOY_FAILED", "message": said}
    first = worst()
    assert first["found"] == "DEPLOY_FAILED: BadSettings: model: no such folder: /models/score"


def test_an_operator_that_is_not_there_is_missed(release: Release) -> None:
    for engine in ENGINES:
        release.engine(engine).clear()
    assert "kuberay-operator" in worst()["advice"]


def test_warnings_are_told_once(release: Release) -> None:
    message = 'MountVolume.SetUp failed for volume "fleet": secret "fleet" not found'
    for _ in range(3):
        release.warn(f"{NAME}-bridge-0", "FailedMount", message)
    _, findings, _ = typed("doctor")
    assert [message in finding["found"] for finding in findings].count(True) == 1


def worst() -> dict[str, Any]:
    code, findings, _ = typed("doctor")
    assert code == 1
    first: dict[str, Any] = findings[0]
    return first


def test_no_release_several_releases_and_no_rights_are_told_apart(store: Store) -> None:
    code, _, said = typed("status")
    assert (code, "no release named" in said) == (2, True)
    release = Release(store)
    (first, *_) = (value for value in store.objects.values() if value["kind"] == "Deployment")
    other = deepcopy(first)
    other["metadata"] |= {"name": "other", "labels": first["metadata"]["labels"].copy()}
    other["metadata"]["labels"]["app.kubernetes.io/instance"] = "other"
    release._put("apps/v1", "deployments", other)
    code, _, said = typed("status")
    assert (code, "--release" in said) == (2, True)
    assert typed("status", "--release", RELEASE)[0] == 0
    store.may = lambda *_: False
    code, _, said = typed("doctor")
    assert (code, "403" in said) == (4, True)
