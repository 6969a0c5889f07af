"""A release from install to uninstall, by real helm programs against an API in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helm.schema import CHART
from tests.helm.api_server import Store, api_server
from tests.helm.chart import MAJORS, NAME, NAMESPACE, RELEASE, helm, manifests, values_of


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with api_server(tmp_path) as (store, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield store


def gateways(store: Store) -> int:
    found: int = store.of_kind("Deployment")[f"{NAME}-gateway"]["spec"]["replicas"]
    return found


@pytest.mark.parametrize("major", MAJORS)
def test_a_release_lives_and_dies(cluster: Store, major: str) -> None:
    where = ("--namespace", NAMESPACE)
    unchecked = "--disable-openapi-validation"  # the API has no OpenAPI document
    fleet = (*where, *values_of("gpu-fleet"), "--set", "gateway.autoscaling.by=none", unchecked)

    helm("install", RELEASE, str(CHART), *fleet, "--set", "gateway.replicas=3", major=major)
    wanted = {
        (manifest["kind"], manifest["metadata"]["name"])
        for manifest in manifests("gpu-fleet", "gateway.autoscaling.by=none")
        if "helm.sh/hook" not in manifest["metadata"].get("annotations", {})
    }
    there = {(value["kind"], key[3]) for key, value in cluster.objects.items()}
    assert wanted == {each for each in there if each[0] != "Secret"}
    assert gateways(cluster) == 3

    helm("upgrade", RELEASE, str(CHART), *fleet, "--set", "gateway.replicas=5", major=major)
    assert gateways(cluster) == 5
    helm("rollback", RELEASE, "1", *where, major=major)
    assert gateways(cluster) == 3
    history = json.loads(helm("history", RELEASE, *where, "--output", "json", major=major))
    assert [entry["status"] for entry in history] == ["superseded", "superseded", "deployed"]

    helm("uninstall", RELEASE, *where, major=major)
    assert not cluster.objects


def test_pictures_outlive_a_release(cluster: Store) -> None:
    where = ("--namespace", NAMESPACE)
    helm("install", RELEASE, str(CHART), *where, *values_of("cpu"), "--disable-openapi-validation")
    helm("uninstall", RELEASE, *where)
    assert {value["kind"] for value in cluster.objects.values()} == {"PersistentVolumeClaim"}
