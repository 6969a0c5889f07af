"""The chart and the settings classes know the same names, and what the chart says is valid."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml

from helm.schema import NOT_OFFERED, OWNED, SCHEMA, leaves, services
from services.gateway.settings import EnginePeer
from services.runtime.attachments import Terms
from services.runtime.settings import _names, read
from tests.helm.chart import PROFILES, Manifest, containers, manifests, of_kind, pods

PREFIXES = {
    "gateway": "TM_GATEWAY_",
    "bridge": "TM_BRIDGE_",
    "score": "TM_SCORE_",
    "vae": "TM_VAE_",
}
ENGINES = ("score", "vae")
# Between them every option that sets a variable is on once.
EVERYTHING = (
    ("cpu", "gateway.web.enabled=true"),
    (
        "gpu-fleet",
        "tls.clientAuthorities=true",
        "redis.tls.clientCertificate=true",
        "bridge.chatKey.name=chat",
        "gateway.auth.keys.name=keys",
        "gateway.web.enabled=true",
        "gateway.web.turnSecret.name=turn",
        "gateway.settings.web.turn.urls[0]=turn:turn.example.com:3478",
        "exposure.webHosts[0]=talk.example.com",
        "gateway.auth.jwtKey.name=issuer",
    ),
)


def names(service: str) -> set[str]:
    """Dotted paths of all settings of a service that hold a value, not a group."""
    kind = services()[service]
    every = {name.lower().replace("__", ".") for name in _names(kind)}
    # A list of groups is one value: JSON.
    lists = {
        name for name, field in kind.model_fields.items() if get_origin(field.annotation) is tuple
    }
    every = {name for name in every if name.partition(".")[0] not in lists} | lists
    return {name for name in every if not any(other.startswith(f"{name}.") for other in every)}


def rendered(service: str, *which: str) -> set[str]:
    """Dotted paths of the settings that the chart itself sets, in any rendering."""
    found = set()
    for profile, *options in [which] if which else EVERYTHING:
        everything = manifests(profile, *options)
        if service in ENGINES:
            found |= set(flat(arguments(everything)[service]))
        else:
            found |= set(environment(everything, service))
    return found


def environment(found: list[Manifest], service: str) -> dict[str, str]:
    """Settings by dotted path, as text; a secret's is its reference."""
    prefix, variables = PREFIXES[service], {}
    for _, pod in pods(found):
        for container in containers(pod):
            for entry in container.get("env", []):
                if entry["name"].startswith(prefix):
                    path = entry["name"].removeprefix(prefix).lower().replace("__", ".")
                    variables[path] = entry.get("value", "from a secret")
    return variables


def arguments(found: list[Manifest]) -> dict[str, dict[str, Any]]:
    """Arguments of the Serve applications."""
    applications = [
        application
        for service in of_kind(found, "RayService").values()
        for application in yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    ]
    return {application["name"]: application["args"] for application in applications}


def flat(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def below(path: str, groups: Any) -> bool:
    return any(path == group or path.startswith(f"{group}.") for group in groups)


@pytest.mark.parametrize("service", sorted(services()))
def test_every_setting_can_be_given_or_is_given(service: str) -> None:
    admitted = set(leaves(json.loads(SCHEMA.read_text())["definitions"][service]))
    owned = {path for path in rendered(service) if below(path, OWNED[service])}
    unused = {path for path in names(service) if below(path, NOT_OFFERED[service])}
    # What the chart sets for all, by a value that its default already has.
    fixed = {path for path in names(service) if path == "endpoint.ports"}
    assert names(service) == admitted | owned | unused | fixed
    assert not admitted & (owned | unused)


@pytest.mark.parametrize("service", sorted(services()))
def test_the_chart_sets_no_name_that_no_class_has(service: str) -> None:
    assert not rendered(service) - names(service)


def test_every_variable_belongs_to_a_service() -> None:
    for profile in PROFILES:
        for _, pod in pods(manifests(profile)):
            for container in containers(pod):
                for entry in container.get("env", []):
                    if entry["name"].startswith("TM_"):
                        assert entry["name"].startswith(tuple(PREFIXES.values()))


@pytest.fixture
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("TM_"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("service", ["gateway", "bridge"])
def test_rendered_environments_are_valid(
    profile: str, service: str, quiet_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path, value in environment(manifests(profile), service).items():
        if value.startswith("/run/talkingmachines/"):
            value = str(tmp_path / "given")
            Path(value).write_text("token")
        variable = PREFIXES[service] + path.upper().replace(".", "__")
        quiet_environment.setenv(variable, value)
    read(services()[service])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("quiet_environment")
def test_rendered_arguments_are_valid(profile: str, engine: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("token")
    read(services()[engine], arguments(manifests(profile))[engine] | {"token_file": token})


@pytest.mark.parametrize(
    ("option", "path", "text"),
    [
        ("gateway.settings.image.bytes=33554432", "image.bytes", "33554432"),
        ("gateway.settings.session.session_seconds=86400", "session.session_seconds", "86400"),
        ("gateway.settings.listen.reflection=true", "listen.reflection", "true"),
        ("gateway.settings.auth.jwt.algorithms={ES256}", "auth.jwt.algorithms", '["ES256"]'),
    ],
)
def test_numbers_and_lists_arrive_as_settings_read_them(option: str, path: str, text: str) -> None:
    assert environment(manifests("cpu", option), "gateway")[path] == text


def test_an_old_cluster_outlives_its_attachments() -> None:
    """The chart states the ages, because no template can read a class; they are the same."""
    for service in of_kind(manifests("gpu-fleet"), "RayService").values():
        config = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]
        terms = Terms(**config["args"]["terms"])
        assert config["args"]["terms"].items() <= Terms().model_dump().items()
        renewal = EnginePeer(address="score").renew_seconds
        delay = service["spec"]["rayClusterDeletionDelaySeconds"]
        assert delay >= renewal + terms.longest_seconds + 60


def test_gateways_call_where_an_upgrade_leads() -> None:
    """The names that they call are the ones that KubeRay moves, in both layouts."""
    for profile in ("cpu", "gpu-fleet"):
        found = manifests(profile)
        moved = {
            service["spec"]["serveService"]["metadata"]["name"]
            for service in of_kind(found, "RayService").values()
        }
        called = environment(found, "gateway")
        names = {called[f"{engine}.address"] for engine in ENGINES}
        assert names == {f"dns:///{name}:9000" for name in moved}


@pytest.mark.parametrize(
    ("profile", "service", "gpus", "cpus", "least", "most"),
    [
        ("cpu", "engines", None, "2", 1, 1),
        ("gpu-single", "engines", 1, "2", 1, 1),
        ("gpu-fleet", "score", 8, "32", 1, 8),
        ("gpu-fleet", "vae", 1, "4", 2, 32),
    ],
)
def test_pods_follow_from_settings(
    profile: str, service: str, gpus: int | None, cpus: str, least: int, most: int
) -> None:
    """Ranks, replicas and replicas per pod give GPUs, CPUs and the number of pods."""
    cluster = of_kind(manifests(profile), "RayService")[service]["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert group["rayStartParams"]["num-cpus"] == cpus
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (least, least, most)
    assert cluster["enableInTreeAutoscaling"] == (most > least)


def test_serve_takes_the_configuration() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray's own code
        from ray.serve.schema import ServeDeploySchema

    for profile in PROFILES:
        for service in of_kind(manifests(profile), "RayService").values():
            config = yaml.safe_load(service["spec"]["serveConfigV2"])
            ServeDeploySchema.model_validate(config)
