"""Every profile renders with both helms into what every Kubernetes from 1.30 to 1.37 takes."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from helm.schema import CHART, SCHEMA, render
from tests.helm import kinds
from tests.helm.chart import MAJORS, PROFILES, helm, manifests, of_kind, refusal, values_of
from tests.helm.front_kinds import DEFINITIONS

VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
SCHEMAS = Path(__file__).parents[3] / "shared" / "schemas" / "crds.json.gz"
CUSTOM = ("ray.io/", "keda.sh/", "monitoring.coreos.com/", "gateway.networking", "cert-manager.io/")


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("profile", PROFILES)
def test_lint_finds_nothing(profile: str, major: str) -> None:
    assert "0 chart(s) failed" in helm(
        "lint", "--strict", str(CHART), *values_of(profile), major=major
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_both_helms_render_the_same(profile: str) -> None:
    def key(manifest: dict[str, Any]) -> tuple[str, str]:
        return manifest["kind"], manifest["metadata"]["name"]

    old, new = (sorted(manifests(profile, major=major), key=key) for major in MAJORS)
    assert old == new


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_what_is_built_in(version: str) -> None:
    found = {
        json.dumps(manifest)
        for profile in PROFILES
        for manifest in manifests(profile)
        if not manifest["apiVersion"].startswith(CUSTOM)
    }
    assert len(found) > 40
    for manifest in found:
        kinds.check(json.loads(manifest), version)


@cache
def custom_schemas() -> dict[str, Any]:
    if not SCHEMAS.exists():
        pytest.skip(f"NOT RUN: no schemas of custom resources at {SCHEMAS}")
    found: dict[str, Any] = json.loads(gzip.decompress(SCHEMAS.read_bytes()))
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_custom_resources_fit_their_definitions(profile: str) -> None:
    found = [m for m in manifests(profile) if m["apiVersion"].startswith(CUSTOM)]
    assert found
    schemas = custom_schemas() | DEFINITIONS
    for manifest in found:
        if manifest["kind"] != "PodMonitor":  # the next test's
            schema = schemas[f"{manifest['apiVersion']}/{manifest['kind']}"]
            Draft202012Validator(schema).validate(manifest)


def test_pod_monitors_fit_what_service_monitors_admit() -> None:
    """Both kinds share the type of an endpoint; only the other's definition is at hand."""
    monitor = custom_schemas()["monitoring.coreos.com/v1/ServiceMonitor"]
    endpoint = monitor["properties"]["spec"]["properties"]["endpoints"]["items"]
    monitors = of_kind(manifests("gpu-fleet"), "PodMonitor").values()
    assert monitors
    for found in monitors:
        for each in found["spec"]["podMetricsEndpoints"]:
            Draft202012Validator(endpoint).validate(each)


def test_every_kind_of_every_option_is_valid() -> None:
    """What no profile has on."""
    options = (
        "gateway.autoscaling.by=hpa",
        "gateway.blobs.claim.create=true",
        "gateway.blobs.claim.accessModes[0]=ReadWriteMany",
        "exposure.ingress.enabled=true",
        "exposure.ingress.className=nginx",
        "exposure.ingress.tlsSecret=front",
        "exposure.hosts[0]=calls.example.com",
        "gateway.web.enabled=true",
        "gateway.settings.web.public_address=203.0.113.7",
        "exposure.webHosts[0]=talk.example.com",
        "exposure.webIngress.tlsSecret=front",
        "tls.source=secret",
        "tls.secret=given",
        "tls.clientAuthorities=true",
        "model.source=image",
        "model.image.reference=models:1",
        "monitoring.dashboards=true",
        "loadtest.enabled=true",
        'loadtest.file=name = "mine"',
    )
    found = manifests("cpu", *options)
    assert {"HorizontalPodAutoscaler", "Ingress", "Job"} <= {one["kind"] for one in found}
    for manifest in found:
        if not manifest["apiVersion"].startswith(CUSTOM):
            kinds.check(manifest, VERSIONS[0])


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("gateway.replicaz=2", "replicaz"),
        ("gateway.settings.lead.tarqet=2", "tarqet"),
        ("gateway.settings.redis.url=redis://x", "redis"),
        ("score.settings.model=elsewhere", "model"),
        ("score.settings.replicas.gpus=many", "gpus"),
        ("vae.workers.resources.request.cpu=1", "request"),
        ("engines.layout=both", "layout"),
        ("image.digests.gateway=sha256:12", "digests"),
        ("tls.source=secret", "tls.secret"),
        ("gateway.settings.auth.anyone=false", "gateway.auth"),
        ("gateway.settings.web.viewers=3", "gateway.web.enabled"),
        ("gateway.web.turnSecret.name=turn", "turn.urls"),
        (
            "exposure.ingress.enabled=true,exposure.hosts[0]=a.b,gateway.web.enabled=true",
            "exposure.webHosts",
        ),
        ("gateway.replicas=2", "ReadWriteMany"),
        ("score.settings.replicas.least=3", "least"),
        ("score.settings.replicas.gpus=1", "model.source"),
        ("engines.redis.enabled=true", "engines.redis.address"),
        ("loadtest.scale=0", "loadtest"),
        ("gateway.deletionCost.enabled=true", "networkPolicy.kubernetesApi.peers"),
        ("model.source=url,model.url.from=s3://b,score.settings.audio=/a", "score.settings"),
    ],
)
def test_wrong_values_are_refused_by_name(setting: str, complaint: str) -> None:
    assert complaint in refusal("cpu", setting)


def test_schema_is_fresh() -> None:
    assert SCHEMA.read_text() == render(), "run python -m helm.schema"


def test_every_value_has_its_place_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    strict = json.loads(SCHEMA.read_text())
    assert set(values) == set(strict["properties"]) - {"global"}
    assert not strict["additionalProperties"]


def test_every_line_of_values_is_explained_once() -> None:
    """A top-level part is introduced by a comment, on its line or before."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line and line[0].isalpha():
            assert "#" in line or above.startswith("#"), line
