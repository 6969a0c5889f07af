"""Definitions of the custom resources in front of the gateway, as far as a chart could use them.

No package of Python carries them. Written from the public references of the Gateway API (v1:
GRPCRoute, HTTPRoute) and of cert-manager (v1: Certificate); stricter than the originals in that
nothing unknown is let by, and in what only their validation rules say there.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_HOST = {"type": "string", "maxLength": 253, "pattern": rf"^(\*\.)?{_LABEL}(\.{_LABEL})*$"}
_NAME = {"type": "string", "minLength": 1, "maxLength": 253, "pattern": rf"^{_LABEL}(\.{_LABEL})*$"}
_NAMESPACE = {"type": "string", "minLength": 1, "maxLength": 63, "pattern": f"^{_LABEL}$"}
_KIND = {"type": "string", "maxLength": 63, "pattern": "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"}
_GROUP = {"type": "string", "maxLength": 253, "pattern": rf"^$|^{_LABEL}(\.{_LABEL})*$"}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_DURATION = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
_GO_DURATION = {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def _object(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def _list(items: Schema, most: int, *, least: int = 0) -> Schema:
    return {
        "type": "array",
        "items": items,
        "minItems": least,
        "maxItems": most,
        "uniqueItems": True,
    }


def _kind(api_version: str, kind: str, spec: Schema) -> Schema:
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=_object(
            ("name",), name=_NAME, namespace=_NAMESPACE, labels=_TEXTS, annotations=_TEXTS
        ),
        spec=spec,
    )


def _route(kind: str, **more: Schema) -> Schema:
    parent = _object(
        ("name",),
        group=_GROUP,
        kind=_KIND,
        namespace=_NAMESPACE,
        name=_NAME,
        sectionName=_NAME,
        port=_PORT,
    )
    # A port is required where the backend is a Service, which it is by default.
    backend = _object(
        ("name", "port"),
        name=_NAME,
        namespace=_NAMESPACE,
        port=_PORT,
        weight={"type": "integer", "minimum": 0, "maximum": 1_000_000},
    )
    rule = _object((), backendRefs=_list(backend, 16, least=1), name=_NAME, **more)
    spec = _object(
        ("parentRefs", "rules"),
        parentRefs=_list(parent, 32, least=1),
        hostnames=_list(_HOST, 16),
        rules=_list(rule, 16, least=1),
    )
    return _kind("gateway.networking.k8s.io/v1", kind, spec)


_PRIVATE_KEY = _object(
    algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]},
    encoding={"enum": ["PKCS1", "PKCS8"]},
    rotationPolicy={"enum": ["Never", "Always"]},
    size={"type": "integer"},
) | {
    "if": {"properties": {"algorithm": {"const": "ECDSA"}}, "required": ["algorithm"]},
    "then": {"properties": {"size": {"enum": [256, 384, 521]}}},
    "else": {"properties": {"size": {"minimum": 2048, "maximum": 8192}}},
}

_CERTIFICATE = _object(
    ("secretName", "issuerRef", "dnsNames"),
    secretName=_NAME,
    dnsNames=_list(_HOST, 100, least=1),
    duration=_GO_DURATION,
    renewBefore=_GO_DURATION,
    privateKey=_PRIVATE_KEY,
    issuerRef=_object(("name",), name=_NAME, kind=_KIND, group=_GROUP),
    usages=_list({"enum": ["server auth", "client auth", "digital signature"]}, 3),
)

DEFINITIONS = {
    f"{schema['properties']['apiVersion']['const']}/{schema['properties']['kind']['const']}": schema
    for schema in (
        _route("GRPCRoute"),
        _route("HTTPRoute", timeouts=_object(request=_DURATION, backendRequest=_DURATION)),
        _kind("cert-manager.io/v1", "Certificate", _CERTIFICATE),
    )
}
