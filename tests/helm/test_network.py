"""Network policies are the table of docs/security.md: no arrow more, no arrow less."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helm.chart import NAME, Manifest, manifests, of_kind, pods

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
Arrow = tuple[str, str, frozenset[int]]

# Peers outside the release by a label that only this test gives them, so that arrows have names.
OUTSIDE = (
    "clients",
    "monitoring",
    "operator",
    "dns",
    "kubernetesApi",
    "redis",
    "rayRedis",
    "blobs",
    "models",
    "speechModel",
    "tokenIssuer",
    "tracing",
)
ENGINES = ("score", "vae")
PLAIN = ("clients", "monitoring", "operator")


def named_peers() -> list[str]:
    lists = {name: name if name in PLAIN else f"{name}.peers" for name in OUTSIDE}
    label = "podSelector.matchLabels.peer"
    return [f"networkPolicy.{peers}[0].{label}={name}" for name, peers in lists.items()]


@pytest.fixture(scope="module")
def policies() -> dict[str, Manifest]:
    apart = ("engines.layout=apart", *(f"{name}.workers.replicasPerPod=10" for name in ENGINES))
    options = ("gateway.web.enabled=true", "gateway.deletionCost.enabled=true")
    own_redis = manifests("cpu", *apart, *named_peers(), *options)
    return of_kind(own_redis, "NetworkPolicy")


def ports(text: str) -> frozenset[int]:
    if text == "any":
        return frozenset()
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def table() -> set[Arrow]:
    """The arrows of the document."""
    rows = [line.split("|")[1:-1] for line in SECURITY.read_text().splitlines() if "|" in line]
    cells = [[cell.strip() for cell in row] for row in rows if len(row) == 4]
    return {(start, end, ports(port)) for start, end, port, _ in cells[2:]}


def peer(found: dict[str, Any]) -> str:
    labels = found.get("podSelector", {}).get("matchLabels", {})
    return str(labels.get("peer") or labels.get("app.kubernetes.io/component") or found)


def rules(policy: Manifest) -> Iterator[tuple[str, str, frozenset[int]]]:
    """(direction, peer, ports) of every rule."""
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(direction) or []:
            for found in rule[side]:
                yield direction, peer(found), frozenset(numbers(rule.get("ports", [])))


def numbers(entries: list[dict[str, Any]]) -> Iterator[int]:
    for port in entries:
        yield from range(port["port"], port.get("endPort", port["port"]) + 1)


def own(policy: Manifest) -> str:
    labels = policy["spec"]["podSelector"]["matchLabels"]
    return str(labels.get("app.kubernetes.io/component", "everything"))


def test_policies_are_the_table(policies: dict[str, Manifest]) -> None:
    arrows = set()
    for policy in policies.values():
        for direction, other, chosen in rules(policy):
            ends = (other, own(policy)) if direction == "ingress" else (own(policy), other)
            arrows.add((*ends, chosen))
    assert arrows == table()


def test_arrows_inside_are_open_at_both_ends(policies: dict[str, Manifest]) -> None:
    """An arrow that only one end allows carries nothing."""
    inside = {own(policy) for policy in policies.values()} - {"everything"}
    leaving, arriving = set(), set()
    for policy in policies.values():
        for direction, other, chosen in rules(policy):
            if other in inside and direction == "ingress":
                arriving.add((other, own(policy), chosen))
            elif other in inside:
                leaving.add((own(policy), other, chosen))
    assert leaving == arriving


def test_everything_is_denied_first(policies: dict[str, Manifest]) -> None:
    deny = policies["default-deny"]["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not deny.get("ingress")
    assert set(deny["podSelector"]["matchLabels"]) == {
        "app.kubernetes.io/name",
        "app.kubernetes.io/instance",
    }


@pytest.mark.parametrize("profile", ["cpu", "gpu-fleet"])
def test_every_pod_has_a_policy_of_its_own(profile: str) -> None:
    found = manifests(profile)
    governed = {own(policy) for policy in of_kind(found, "NetworkPolicy").values()}
    for name, _ in pods(found):
        part = name.removeprefix(f"{NAME}-").removesuffix("-head").removesuffix("-worker")
        assert part in governed


def test_an_arrow_without_peers_does_not_exist() -> None:
    found = of_kind(manifests("cpu"), "NetworkPolicy")["gateway"]
    assert {other for direction, other, _ in rules(found) if direction == "egress"} == {
        "bridge",
        "engines",
        "redis",
    }


def test_no_policy_when_switched_off() -> None:
    assert not of_kind(manifests("cpu", "networkPolicy.enabled=false"), "NetworkPolicy")
