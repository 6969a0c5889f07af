"""Make the chart's `values.schema.json`: strict, and complete because nothing is listed twice.

    python -m helm.schema [--check]

The shape of the values is read off `values.yaml`, whose every field is there with its default; what
a default cannot say (choices, ranges, forms) is in `RULES`, by path. What `settings` admit comes
from the services' own classes, without the fields that the chart sets itself (`OWNED`) or does not
offer (`NOT_OFFERED`, with the reason). `tests/helm/test_settings.py` compares all that with the
environment that the chart renders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings

from services.gateway.settings import Settings as GatewaySettings
from services.score.settings import Settings as ScoreSettings
from services.vae.settings import Settings as VaeSettings

CHART = Path(__file__).parent / "talkingmachines"
SCHEMA = CHART / "values.schema.json"

Schema = dict[str, Any]

_LISTEN = ("listen.host", "listen.port", "listen.plaintext_beyond_loopback")
_ENDPOINT = ("endpoint",)
# What the chart sets itself, by service: it knows addresses, ports and files.
OWNED: Mapping[str, tuple[str, ...]] = {
    "gateway": (
        *_LISTEN,
        *_ENDPOINT,
        "listen.tls",
        "score.address",
        "vae.address",
        "bridge.address",
        "engine_token_file",
        "redis",
        "blobs_url",
        "auth.keys_file",
        "auth.jwt.key_file",
        "web.host",
        "web.port",
        "web.plaintext_beyond_loopback",
        "web.tls",
        "web.turn.secret",
        "pod.name",
        "pod.namespace",
        "pod.every_seconds",
    ),
    "bridge": (*_LISTEN, *_ENDPOINT, "token_file", "realtime.key", "local.chat.key"),
    "score": (*_ENDPOINT, "model", "token_file"),
    "vae": (*_ENDPOINT, "model", "token_file"),
}
_NO_TLS_INSIDE = "Serve's ingress has no TLS: network policies and a mesh protect what is inside"
_OWN_NAMES = "the chart calls its applications score and vae"
_SERVE_LISTENS = "of `python -m services.…` without Ray; Serve listens by itself"
# What a fleet in Kubernetes has no use for.
NOT_OFFERED: Mapping[str, Mapping[str, str]] = {
    "gateway": {
        "score.tls": _NO_TLS_INSIDE,
        "vae.tls": _NO_TLS_INSIDE,
        "score.application": _OWN_NAMES,
        "vae.application": _OWN_NAMES,
        "bridge.tls": _NO_TLS_INSIDE,
        "pod.credentials": "Kubernetes mounts them in one place",
    },
    "bridge": {"listen.tls": _NO_TLS_INSIDE},
    "score": {"listen": _SERVE_LISTENS},
    "vae": {"listen": _SERVE_LISTENS},
}

_NAME = {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"}
_KEY = {"type": "string", "pattern": "^[-._a-zA-Z0-9]+$"}
_QUANTITY = {
    "type": ["string", "number"],
    "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
}
_SIZE = {"type": "string", "pattern": "^[0-9]+(Ki|Mi|Gi|Ti)$"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 1}
_SECONDS = {"type": "integer", "minimum": 0}
_OBJECTS = {"type": "array", "items": {"type": "object"}}  # Kubernetes' own, checked by it
_PORTS = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 1, "maximum": 65535},
}
_AMOUNTS = {"type": "object", "additionalProperties": _QUANTITY}
_RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS},
}


def _choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


# The first pattern that fits a path, and the kind of its default, says what the default does not.
RULES: Mapping[str, Schema] = {
    "image.registry": {"type": "string", "pattern": "^[a-z0-9][-a-z0-9._/:]*[a-z0-9]$"},
    "image.digests.*": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": _choice("Always", "IfNotPresent", "Never"),
    "image.pullSecrets": {"type": "array", "items": _NAME},
    "tls.source": _choice("none", "secret", "certManager"),
    "tls.issuer.kind": _choice("Issuer", "ClusterIssuer"),
    "exposure.hosts": {
        "type": "array",
        "items": {"type": "string", "pattern": "^(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
    },
    "exposure.webHosts": {
        "type": "array",
        "items": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
    },
    "exposure.gatewayApi.parentRefs": _OBJECTS,
    "gateway.blobs.url": {"type": "string", "pattern": "^([a-z0-9]+://.+)?$"},
    "gateway.blobs.claim.accessModes": {
        "type": "array",
        "minItems": 1,
        "items": _choice("ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"),
    },
    "gateway.service.type": _choice("ClusterIP", "NodePort", "LoadBalancer"),
    "gateway.service.port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "gateway.web.port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "gateway.web.mediaPorts.*": {"type": "integer", "minimum": 1024, "maximum": 65535},
    "gateway.autoscaling.by": _choice("none", "hpa", "keda"),
    "gateway.autoscaling.quietSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
    "gateway.autoscaling.prometheus": {"type": "string", "pattern": "^(https?://.+)?$"},
    "model.source": _choice("bundled", "claim", "url", "image"),
    "model.url.from": {"type": "string", "pattern": "^([a-z0-9]+://.+)?$"},
    "model.image.folder": {"type": "string", "pattern": "^/"},
    "model.size": _SIZE,
    "engines.layout": _choice("apart", "together"),
    "engines.rayVersion": {"type": "string", "pattern": "^[0-9]+\\.[0-9]+\\.[0-9]+$"},
    "engines.upgrade": _choice("NewCluster", "None"),
    "engines.startSeconds": _COUNT,
    "engines.sharedMemory": _SIZE,
    "engines.scratch": _SIZE,
    "engines.env": _TEXTS,
    "*.workers.replicasPerPod": {"type": "integer", "minimum": 1, "maximum": 16},
    "networkPolicy.enabled": {"type": "boolean"},
    "networkPolicy.*.peers": _OBJECTS,
    "networkPolicy.*.ports": _PORTS,
    "networkPolicy.*": _OBJECTS,
    "monitoring.labels": _TEXTS,
    "monitoring.interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    "*.annotations": _TEXTS,
    "*.nodeSelector": _TEXTS,
    "*.tolerations": _OBJECTS,
    "*.resources": _RESOURCES,
    "*.size": _SIZE,
    "*.key": _KEY,
    "*.name": _NAME,
    "*.secret": _NAME,
    "gateway.deletionCost.everySeconds": _COUNT,
    "loadtest.scenario": {"type": "string", "pattern": "^[a-z][-a-z0-9]*$"},
    "loadtest.scale": {"type": "number", "exclusiveMinimum": 0},
    "loadtest.seconds": {"type": "number", "minimum": 0},
    "loadtest.pods": {"type": "integer", "minimum": 1, "maximum": 1000},
    "*Seconds": _SECONDS,
    "*.replicas": _COUNT,
    "*.least": _COUNT,
    "*.most": _COUNT,
    "*.sessionsPerGateway": _COUNT,
}


def services() -> dict[str, type[BaseSettings]]:
    """Settings classes by the part of the values that holds them."""
    found: dict[str, type[BaseSettings]] = {
        "gateway": GatewaySettings,
        "score": ScoreSettings,
        "vae": VaeSettings,
    }
    if find_spec("services.llm_bridge"):
        found["bridge"] = import_module("services.llm_bridge.settings").Settings
    return found


def schema() -> Schema:
    """The whole schema."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    shape = dict(_shape("", values))
    # Helm gives these to every chart that is part of another.
    shape["properties"]["global"] = {"type": "object"}
    known = services()
    definitions = {}
    for name in OWNED:
        if name in known:
            definitions[name] = settings_schema(known[name], name)
        else:  # kept as it was: its class is not here
            definitions[name] = json.loads(SCHEMA.read_text())["definitions"][name]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the talkingmachines chart",
        **shape,
        "definitions": definitions,
    }


def settings_schema(kind: type[BaseSettings], service: str) -> Schema:
    """What `settings` of a service admit."""
    whole = kind.model_json_schema()
    inlined: Schema = _inlined(whole, whole.get("$defs", {}))
    for path in (*OWNED[service], *NOT_OFFERED[service]):
        _without(inlined, path.split("."))
    return inlined


def leaves(node: Schema, path: str = "") -> Iterator[str]:
    """Dotted paths of the settings that a schema admits."""
    properties = _properties(node)
    if not properties:
        yield path
    for name, inner in properties.items():
        yield from leaves(inner, f"{path}.{name}" if path else name)


def render() -> str:
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


def _shape(path: str, value: Any) -> Schema:
    fits = (rule for form, rule in RULES.items() if fnmatch(path, form) and _of(rule, value))
    if rule := next(fits, None):
        return dict(rule)
    if path.endswith(".settings"):
        return {"$ref": f"#/definitions/{path.removesuffix('.settings')}"}
    match value:
        case dict():
            inner = {key: _shape(f"{path}.{key}".lstrip("."), item) for key, item in value.items()}
            return {"type": "object", "additionalProperties": False, "properties": inner}
        case bool():
            return {"type": "boolean"}
        case str():
            return {"type": "string"}
        case _:
            raise ValueError(f"values.yaml: {path} needs a rule in helm/schema.py")


def _of(rule: Schema, value: Any) -> bool:
    """Whether a rule is for values like this one: for maps, lists or neither."""
    kinds = {"object": dict, "array": list}
    wanted = kinds.get(rule["type"]) if isinstance(rule["type"], str) else None
    return isinstance(value, wanted) if wanted else not isinstance(value, dict | list)


_DROPPED = ("title", "description", "format", "default", "writeOnly", "$defs")


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    """Without references, and without what says nothing to who checks values."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    kept: Schema = {}
    for key, item in node.items():
        if key == "properties":
            kept[key] = {name: _inlined(inner, definitions) for name, inner in item.items()}
        elif key not in _DROPPED:
            kept[key] = _inlined(item, definitions)
    if kept.get("type") == "object":
        kept["additionalProperties"] = False
    return _without_null(kept)


def _without_null(node: Schema) -> Schema:
    """A setting that may be absent is left out, not null."""
    admitted = [kind for kind in node.get("anyOf", ()) if kind.get("type") != "null"]
    if not admitted:
        return node
    rest = {key: item for key, item in node.items() if key != "anyOf"}
    return {**rest, **(admitted[0] if len(admitted) == 1 else {"anyOf": admitted})}


def _without(node: Schema, path: list[str]) -> None:
    """Take one setting out; a group left empty goes as well."""
    properties = _properties(node)
    name, *rest = path
    if name not in properties:
        return
    if rest:
        _without(properties[name], rest)
    if not rest or not _properties(properties[name]):
        del properties[name]
    if "required" in node:
        # The chart gives it, so a group that needs nothing else may be left out.
        node["required"] = [field for field in node["required"] if field != name]
        if not node["required"]:
            del node["required"]


def _properties(node: Schema) -> dict[str, Any]:
    found: dict[str, Any] = node.get("properties", {})
    return found


def main() -> None:
    if "--check" in sys.argv[1:]:
        if SCHEMA.read_text() != render():
            sys.exit(f"{SCHEMA} is stale: run python -m helm.schema")
        return
    SCHEMA.write_text(render())


if __name__ == "__main__":
    main()
