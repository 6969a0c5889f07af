"""Secrets and ConfigMaps as helm's client sends them: protobuf inside Kubernetes' envelope.

Field numbers are those of `k8s.io/apimachinery/pkg/runtime` (Unknown: 1 type, 2 object) and
`k8s.io/api/core/v1` (Secret: 1 metadata, 2 data, 3 type; ObjectMeta: 1 name, 3 namespace, 5 uid,
11 labels).
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

_MAGIC = b"k8s\0"


def from_protobuf(raw: bytes) -> dict[str, Any]:
    """An object, as its JSON would be; options of a deletion are empty."""
    envelope = _fields(raw.removeprefix(_MAGIC))
    kind = _fields(envelope[1][0])[2][0].decode()
    if kind not in ("Secret", "ConfigMap"):
        return {}
    fields = _fields(envelope[2][0])
    meta = _fields(fields[1][0])
    metadata: dict[str, Any] = {"name": meta[1][0].decode()}
    if meta.get(11):
        metadata["labels"] = {key: value.decode() for key, value in _map(meta[11]).items()}
    if meta.get(5) and meta[5][0]:
        metadata["uid"] = meta[5][0].decode()
    data = {
        key: b64encode(value).decode() if kind == "Secret" else value.decode()
        for key, value in _map(fields.get(2, [])).items()
    }
    found = {"apiVersion": "v1", "kind": kind, "metadata": metadata, "data": data}
    if kind == "Secret" and fields.get(3):
        found["type"] = fields[3][0].decode()
    return found


def _map(entries: list[bytes]) -> dict[str, bytes]:
    pairs = (_fields(entry) for entry in entries)
    return {pair[1][0].decode(): pair.get(2, [b""])[0] for pair in pairs}


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """Length-delimited fields by number; others are skipped."""
    found: dict[int, list[bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(message, at)
                found.setdefault(tag >> 3, []).append(message[at : at + size])
                at += size
            case _:
                at += 4
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
