"""Read frozen dataclasses from JSON and write them back, refusing whatever does not fit.

Serves the `config.json` of both model services: names and types of the dataclasses are the schema,
so there is no second list that could disagree. Unknown names, missing names and wrong types are
refused by field path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_SHOWN = 200  # characters of a value that does not fit


class Misfit(ValueError):
    """A value that its field cannot take. `field` is its path, as `config.audio.after`."""

    def __init__(self, field: str, *, got: object, expected: str) -> None:
        shown = str(got)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        super().__init__(f"{field}: expected {expected}, got {shown}")
        self.field = field
        self.got = shown
        self.expected = expected


def parse(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or nested too deeply to be a configuration.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read(kind: type[T], value: object, path: str = "config") -> T:
    """Build `kind`, a dataclass, from what `json.loads` gave.

    Fields may be int, float, bool, str, `Literal`, fixed or open tuples, dataclasses, unions of
    dataclasses told apart by a `Literal` field called `kind`, or any of these or None.

    Raises:
        Misfit: naming the first field that does not fit.
    """
    if not isinstance(value, Mapping):
        raise Misfit(path, got=repr(value), expected="an object")
    types = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            raise Misfit(f"{path}.{name}", got="the field", expected=f"one of {sorted(known)}")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise Misfit(f"{path}.{name}", got="nothing", expected="a value")
    return kind(**{name: _value(types[name], got, f"{path}.{name}") for name, got in value.items()})


def write(value: Any) -> object:
    """What `read` would read back, ready for `json.dumps`."""
    if is_dataclass(value):
        return {field.name: write(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [write(item) for item in value]
    return value


def _value(kind: Any, value: object, path: str) -> object:
    if is_dataclass(kind) and isinstance(kind, type):
        return read(kind, value, path)
    origin = get_origin(kind)
    if origin is UnionType or origin is Union:  # the latter is what a Literal | None makes
        return _one_of(get_args(kind), value, path)
    if origin is Literal:
        return _literal(get_args(kind), value, path)
    if origin is tuple:
        return _tuple(get_args(kind), value, path)
    # JSON writes 1.0 as 1 in many hands, so an integer is a number; a bool never is.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return _real(value, path)
    if type(value) is not kind:
        raise Misfit(path, got=repr(value), expected=f"a value of type {kind.__name__}")
    return value


def _real(value: int, path: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise Misfit(path, got=f"{value.bit_length()} bits", expected="a real number") from error


def _one_of(kinds: tuple[Any, ...], value: object, path: str) -> object:
    if value is None and NoneType in kinds:
        return None
    choices = [kind for kind in kinds if kind is not NoneType]
    if len(choices) == 1:
        return _value(choices[0], value, path)
    named = {get_args(get_type_hints(choice)["kind"])[0]: choice for choice in choices}
    name = value.get("kind") if isinstance(value, Mapping) else None
    if name not in named:
        raise Misfit(f"{path}.kind", got=repr(name), expected=f"one of {sorted(named)}")
    return _value(named[name], value, path)


def _literal(choices: tuple[object, ...], value: object, path: str) -> object:
    if value not in choices:
        raise Misfit(path, got=repr(value), expected=f"one of {list(choices)}")
    return value


def _tuple(kinds: tuple[Any, ...], value: object, path: str) -> object:
    if not isinstance(value, list | tuple):
        raise Misfit(path, got=repr(value), expected="a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise Misfit(path, got=f"{len(value)} values", expected=f"{len(kinds)} values")
    pairs = zip(kinds, value, strict=True)
    return tuple(_value(kind, item, f"{path}[{n}]") for n, (kind, item) in enumerate(pairs))
