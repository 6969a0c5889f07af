"""The load test's Job: off by default, and a command that the program itself understands."""

from __future__ import annotations

import pytest

from helm.schema import CHART
from loadtest.__main__ import options_of
from loadtest.scenario import names, read
from tests.helm.chart import NAME, NAMESPACE, containers, manifests, of_kind, pods

ON = "loadtest.enabled=true"


def arguments(*settings: str) -> list[str]:
    (job,) = of_kind(manifests("cpu", ON, *settings), "Job").values()
    (container,) = containers(job["spec"]["template"]["spec"])
    found: list[str] = container["args"]
    return found


def test_it_is_off_by_default() -> None:
    assert not of_kind(manifests("cpu"), "Job")


def test_its_command_is_one_that_the_program_takes() -> None:
    options = options_of(arguments("loadtest.scale=2", "loadtest.seconds=60"))
    assert read(options.scenario).name == "steady"
    assert options.server == f"{NAME}-gateway.{NAMESPACE}.svc:50050"
    assert (options.scale, options.seconds, options.json) == (2, 60, True)
    assert options.authorities is None


def test_it_believes_whom_the_gateway_shows() -> None:
    given = ("tls.source=secret", "tls.secret=given")
    options = options_of(arguments(*given))
    assert str(options.authorities) == "/run/talkingmachines/tls/ca.crt"


@pytest.mark.parametrize("name", names())
def test_a_scenario_of_ones_own_arrives_whole(name: str) -> None:
    text = (CHART.parents[1] / "loadtest" / "scenarios" / f"{name}.toml").read_text()
    escaped = text.replace("\\", "\\\\").replace(",", "\\,")
    found = manifests("cpu", ON, f"loadtest.file={escaped}")
    assert of_kind(found, "ConfigMap")["loadtest"]["data"]["scenario.toml"] == text.rstrip("\n")
    assert arguments(f"loadtest.file={escaped}")[0] == "/scenario/scenario.toml"


def test_other_values_make_another_job() -> None:
    one, other = (set(of_kind(manifests("cpu", ON, f"loadtest.scale={n}"), "Job")) for n in (1, 2))
    assert one.isdisjoint(other)


def test_its_pods_may_call_gateways_and_nobody_else() -> None:
    found = manifests("cpu", ON)
    (job,) = of_kind(found, "Job").values()
    labels = job["spec"]["template"]["metadata"]["labels"]
    policy = of_kind(found, "NetworkPolicy")["test"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert any(name == job["metadata"]["name"] for name, _ in pods(found))
