"""Kubernetes' own definitions, strict, for every version that `kubernetes-validate` carries.

Its own function reads megabytes anew for every object; here a version's definitions are read once.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate import utils
from referencing import Registry, Resource


def check(manifest: dict[str, Any], version: str) -> None:
    """Raise what `jsonschema` finds wrong with a manifest of a built-in kind."""
    _validator(manifest["apiVersion"], manifest["kind"], version).validate(manifest)


@cache
def _validator(api_version: str, kind: str, version: str) -> Draft202012Validator:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # rbac.authorization.k8s.io/v1
    schema = _content(f"{kind.lower()}-{group}.json", version)
    return Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Any:
    resource: Any = Resource.from_contents(_content("_definitions.json", version))
    return resource @ Registry()


def _content(name: str, version: str) -> Any:
    full = next(known for known in utils.all_versions() if known.startswith(f"{version}."))
    folder = f"kubernetes-json-schema/v{full}-local-strict"
    return utils.schema_contents(f"{folder}/{name}", full)
