"""How callers come in from outside: routes, ingresses and certificates lead to what is there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.helm.chart import NAME, NAMESPACE, Manifest, containers, manifests, of_kind, pods
from tests.helm.front_kinds import DEFINITIONS

GATEWAY_API = (
    "exposure.gatewayApi.enabled=true",
    "exposure.gatewayApi.parentRefs[0].name=front",
    "exposure.gatewayApi.parentRefs[0].namespace=gateways",
    "exposure.gatewayApi.parentRefs[0].sectionName=grpc",
    "exposure.hosts[0]=calls.example.com",
    "exposure.hosts[1]=*.calls.example.com",
)
WEB = (
    "gateway.web.enabled=true",
    "gateway.settings.web.public_address=203.0.113.7",
    "exposure.webHosts[0]=talk.example.com",
)
INGRESS = ("exposure.ingress.enabled=true", "exposure.hosts[0]=calls.example.com")
CERTIFICATE = (
    "tls.source=certManager",
    "tls.secret=front",
    "tls.issuer.name=letters",
    "tls.issuer.kind=ClusterIssuer",
    "exposure.hosts[0]=calls.example.com",
)
EVERYTHING = (*GATEWAY_API, *WEB, *CERTIFICATE)


def checked(manifest: Manifest) -> None:
    definition = DEFINITIONS[f"{manifest['apiVersion']}/{manifest['kind']}"]
    Draft202012Validator(definition).validate(manifest)


def front(*options: str) -> list[Manifest]:
    kinds = {name.rpartition("/")[2] for name in DEFINITIONS}
    return [found for found in manifests("cpu", *options) if found["kind"] in kinds]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ((), set()),
        (GATEWAY_API, {"GRPCRoute"}),
        ((*GATEWAY_API, *WEB), {"GRPCRoute", "HTTPRoute"}),
        (CERTIFICATE, {"Certificate"}),
        (EVERYTHING, {"GRPCRoute", "HTTPRoute", "Certificate"}),
    ],
)
def test_routes_and_certificates_fit_their_definitions(
    options: tuple[str, ...], kinds: set[str]
) -> None:
    found = front(*options)
    assert {manifest["kind"] for manifest in found} == kinds
    for manifest in found:
        checked(manifest)


def _spec(change: Callable[[dict[str, Any]], object]) -> Callable[[Manifest], object]:
    return lambda manifest: change(manifest["spec"])


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("GRPCRoute", _spec(lambda spec: spec.pop("parentRefs"))),
        ("GRPCRoute", _spec(lambda spec: spec["parentRefs"][0].pop("name"))),
        ("GRPCRoute", _spec(lambda spec: spec["rules"][0]["backendRefs"][0].pop("port"))),
        ("GRPCRoute", _spec(lambda spec: spec["rules"][0]["backendRefs"][0].update(port="grpc"))),
        ("GRPCRoute", _spec(lambda spec: spec["rules"][0].update(timeouts={}))),
        ("GRPCRoute", _spec(lambda spec: spec.update(hostnames=["https://calls"]))),
        ("HTTPRoute", _spec(lambda spec: spec["rules"][0].update(backends=[]))),
        ("HTTPRoute", lambda manifest: manifest.update(apiVersion="gateway.networking.k8s.io/v2")),
        ("Certificate", _spec(lambda spec: spec.pop("secretName"))),
        ("Certificate", _spec(lambda spec: spec["privateKey"].update(size=2048))),
        ("Certificate", _spec(lambda spec: spec["issuerRef"].pop("name"))),
    ],
)
def test_what_does_not_fit_is_found(kind: str, spoil: Callable[[Manifest], object]) -> None:
    whole = next(found for found in front(*EVERYTHING) if found["kind"] == kind)
    spoiled = copy.deepcopy(whole)
    spoil(spoiled)
    with pytest.raises((ValidationError, KeyError)):
        checked(spoiled)


@pytest.mark.parametrize("way", [GATEWAY_API, INGRESS], ids=["routes", "ingress"])
def test_what_comes_in_leads_to_ports_of_services(way: tuple[str, ...]) -> None:
    found = manifests("cpu", *way, *WEB)
    services = of_kind(found, "Service")
    led = [
        backend
        for kind in ("GRPCRoute", "HTTPRoute")
        for route in of_kind(found, kind).values()
        for rule in route["spec"]["rules"]
        for backend in rule["backendRefs"]
    ] + [
        path["backend"]["service"]
        for ingress in of_kind(found, "Ingress").values()
        for rule in ingress["spec"]["rules"]
        for path in rule["http"]["paths"]
    ]
    assert {backend["name"] for backend in led} == {f"{NAME}-gateway", f"{NAME}-gateway-web"}
    for backend in led:
        service = services[backend["name"].removeprefix(f"{NAME}-")]["spec"]
        asked = backend["port"]
        ports = [port["name" if isinstance(asked, dict) else "port"] for port in service["ports"]]
        assert (asked["name"] if isinstance(asked, dict) else asked) in ports
        # And on to a port that a container of the pods behind it names.
        named = [port["targetPort"] for port in service["ports"]]
        (pod,) = [spec for name, spec in pods(found) if name == f"{NAME}-gateway"]
        there = {port["name"] for one in containers(pod) for port in one.get("ports", [])}
        assert set(named) <= there


def test_hosts_of_callers_and_of_browsers_are_apart() -> None:
    routes = {one["kind"]: one["spec"]["hostnames"] for one in front(*GATEWAY_API, *WEB)}
    assert routes == {
        "GRPCRoute": ["calls.example.com", "*.calls.example.com"],
        "HTTPRoute": ["talk.example.com"],
    }


def test_the_certificate_is_the_one_that_the_gateway_shows() -> None:
    found = manifests("cpu", *CERTIFICATE, *WEB)
    (certificate,) = of_kind(found, "Certificate").values()
    spec = certificate["spec"]
    assert spec["issuerRef"] == {
        "name": "letters",
        "kind": "ClusterIssuer",
        "group": "cert-manager.io",
    }
    (gateway,) = [spec for name, spec in pods(found) if name == f"{NAME}-gateway"]
    secrets = {
        volume["secret"]["secretName"] for volume in gateway["volumes"] if "secret" in volume
    }
    assert spec["secretName"] in secrets
    service = f"{NAME}-gateway"
    assert set(spec["dnsNames"]) == {
        service,
        f"{service}.{NAMESPACE}",
        f"{service}.{NAMESPACE}.svc",
        "calls.example.com",
        "talk.example.com",
    }
