"""A Kubernetes API in memory: what helm asks of one, and nothing else.

Objects live in a dict by their path in the API. Discovery, create, get, list by labels, replace,
merge patches (of a pod's status as well), delete; no controllers, no validation, no watches; rights
where a test asks for them. Helm's own records are Secrets that its client sends as protobuf, of
which `wire.py` reads the few fields that there are.
"""

from __future__ import annotations

import json
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread  # noqa: TID251  helm talks to it while the test waits for helm
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.helm.wire import from_protobuf

Object = dict[str, Any]
Key = tuple[str, str, str, str]  # API version, plural, namespace, name
May = Callable[[str, str, str], bool]  # verb, API group, resource with its subresource

_VERBS = ["create", "delete", "get", "list", "patch", "update"]
KINDS = {  # API version → {plural: kind}; all of them in namespaces, but for the last
    "v1": {
        "configmaps": "ConfigMap",
        "events": "Event",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
        "namespaces": "Namespace",
    },
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "cert-manager.io/v1": {"certificates": "Certificate"},
    "gateway.networking.k8s.io/v1": {"grpcroutes": "GRPCRoute"},
    "keda.sh/v1alpha1": {"scaledobjects": "ScaledObject"},
    "monitoring.coreos.com/v1": {"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"},
    "networking.k8s.io/v1": {"ingresses": "Ingress", "networkpolicies": "NetworkPolicy"},
    "rbac.authorization.k8s.io/v1": {"roles": "Role", "rolebindings": "RoleBinding"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "ray.io/v1": {"rayservices": "RayService"},
}


class Refusal(Exception):
    """An answer other than yes: code, reason, message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
        }


class Store:
    """All objects, by (API version, plural, namespace, name)."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.port = "0"  # where it is served
        self.may: May = lambda *_: True
        self.asked: list[tuple[str, str, str]] = []  # method, path, whom the caller says to be
        self._versions = count(1)

    def of_kind(self, kind: str) -> dict[str, Object]:
        return {key[3]: value for key, value in self.objects.items() if value["kind"] == kind}

    def list(self, version: str, plural: str, namespace: str, selector: str) -> Object:
        found = [
            value
            for (v, p, n, _), value in self.objects.items()
            if (v, p) == (version, plural) and namespace in ("", n) and selected(value, selector)
        ]
        meta = {"resourceVersion": str(next(self._versions))}
        kind = KINDS[version][plural]
        return {"kind": f"{kind}List", "apiVersion": version, "metadata": meta, "items": found}

    def get(self, key: Key) -> Object:
        if key not in self.objects:
            raise Refusal(404, "NotFound", f'{key[1]} "{key[3]}" not found')
        return self.objects[key]

    def create(self, key: Key, value: Object) -> Object:
        if key in self.objects:
            raise Refusal(409, "AlreadyExists", f'{key[1]} "{key[3]}" already exists')
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        value["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": created}
        if key[2]:
            value["metadata"]["namespace"] = key[2]
        value |= {"apiVersion": key[0], "kind": KINDS[key[0]][key[1]]}
        return self.put(key, value)

    def put(self, key: Key, value: Object) -> Object:
        value["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[key] = value
        return value

    def delete(self, key: Key) -> Object:
        self.get(key)
        del self.objects[key]
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}


def selected(value: Object, selector: str) -> bool:
    """Whether labels fit `a=b,c!=d,e in (f,g)`, as far as helm writes them."""
    labels = value["metadata"].get("labels") or {}
    for term in filter(None, selector.replace(" in ", "~").split(",")):
        name, _, wanted = term.partition("~" if "~" in term else "=")
        if name.endswith("!"):
            if labels.get(name[:-1]) == wanted:
                return False
        elif labels.get(name) != wanted.strip("()=").strip("="):
            return False
    return True


def merged(old: Any, new: Any) -> Any:
    """A merge patch; in lists of named things, those named are patched (strategic merge)."""
    if isinstance(new, dict):
        result = deepcopy(old) if isinstance(old, dict) else {}
        for name, value in new.items():
            if value is None:
                result.pop(name, None)
            elif not name.startswith("$"):
                result[name] = merged(result.get(name), value)
        return result
    if (
        isinstance(new, list)
        and new
        and isinstance(old, list)
        and all(_named(i) for i in old + new)
    ):
        items = {item["name"]: item for item in old}
        for item in new:
            if item.get("$patch") == "delete":
                items.pop(item["name"], None)
            else:
                items[item["name"]] = merged(items.get(item["name"]), item)
        return list(items.values())
    return new


def _named(item: Any) -> bool:
    return isinstance(item, dict) and "name" in item


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: in two, each answer waits 40 ms for an ACK
    store: Store

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.store.asked.append((self.command, url.path, self.headers.get("Authorization", "")))
        try:
            reply = self._reply(url.path.strip("/").split("/"), query, raw)
        except Refusal as refusal:
            reply = refusal.status
        body = json.dumps(reply).encode()
        self.send_response(reply.get("code", 200))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def _reply(self, path: list[str], query: dict[str, str], raw: bytes) -> Object:
        match path:
            case ["version"]:
                return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                return _groups()
            case ["api", "v1", *rest]:
                return self._resource("v1", rest, query, raw)
            case ["apis", group, version, *rest] if f"{group}/{version}" in KINDS:
                return self._resource(f"{group}/{version}", rest, query, raw)
            case _:
                raise Refusal(404, "NotFound", f"no such path: {self.path}")

    def _resource(self, version: str, rest: list[str], query: dict[str, str], raw: bytes) -> Object:
        if not rest:
            return _resources(version)
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural, *names = rest
        if plural not in KINDS[version]:
            raise Refusal(404, "NotFound", f"no such resource: {plural}")
        self._check(version, "/".join([plural, *names[1:]]), named=bool(names))
        body = _read(raw)
        if names[1:] == ["status"]:
            return self._status((version, plural, namespace, names[0]), body)
        if not names and self.command == "GET":
            return self.store.list(version, plural, namespace, query.get("labelSelector", ""))
        name = names[0] if names else body["metadata"]["name"]
        return self._object((version, plural, namespace, name), body, dry="dryRun" in query)

    def _check(self, version: str, resource: str, *, named: bool) -> None:
        reading = "get" if named else "list"
        verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
        verb, group = verbs.get(self.command, reading), version.rpartition("/")[0]
        if not self.store.may(verb, group, resource):
            raise Refusal(403, "Forbidden", f"cannot {verb} resource {resource!r} in API {group!r}")

    def _status(self, key: Key, body: Object) -> Object:
        """What a patch of the status may change: all but what the object is to be, and whose."""
        old = self.store.get(key)
        new = merged(old, body) | {"spec": old.get("spec", {})}
        new["metadata"]["ownerReferences"] = old["metadata"].get("ownerReferences", [])
        return self.store.put(key, new)

    def _object(self, key: Key, body: Object, *, dry: bool) -> Object:
        kind = self.headers.get("Content-Type", "")
        match self.command:
            case "POST":
                return body if dry else self.store.create(key, body)
            case "PATCH" if "apply-patch" in kind and key not in self.store.objects:
                return body if dry else self.store.create(key, body)
            case "PATCH":
                new = merged(self.store.get(key), body)
                return new if dry else self.store.put(key, new)
            case "PUT":
                old = self.store.get(key)
                body["metadata"].setdefault("uid", old["metadata"]["uid"])
                return body if dry else self.store.put(key, body)
            case "DELETE":
                return self.store.delete(key)
            case _:
                return self.store.get(key)


def _read(raw: bytes) -> Object:
    if raw.startswith(b"k8s\0"):
        return from_protobuf(raw)
    body: Object = json.loads(raw or b"{}")
    return body


def _groups() -> Object:
    groups = []
    for version in KINDS:
        group, _, number = version.partition("/")
        if number:
            both = {"groupVersion": version, "version": number}
            groups.append({"name": group, "versions": [both], "preferredVersion": both})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _resources(version: str) -> Object:
    found = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "namespaced": plural != "namespaces",
            "kind": kind,
            "verbs": _VERBS,
        }
        for plural, kind in KINDS[version].items()
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": found,
    }


@contextmanager
def api_server(
    folder: Path, *, certificate: tuple[Path, Path] | None = None
) -> Iterator[tuple[Store, Path]]:
    """A running API with its objects, and a kubeconfig in `folder` that leads to it.

    Args:
        certificate: the server's, and its key; None: in the clear, as nobody in a cluster is.
    """
    store = Store()
    handler = type("Handler", (_Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    store.port = str(server.server_address[1])
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    named = {"name": "memory"}
    address = f"http://127.0.0.1:{store.port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "memory",
        "clusters": [named | {"cluster": {"server": address}}],
        "users": [named | {"user": {}}],
        "contexts": [named | {"context": {"cluster": "memory", "user": "memory"}}],
    }
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    try:
        yield store, kubeconfig
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
