"""Ranges of a configuration's numbers, stated where its fields are and checked in one place.

Beside `strict_json.py`, which sees to names and types. A field of type `Annotated[int, Range(...)]`
must lie in that range, and so must every item of a tuple of such numbers; a number that is not
finite lies in none. What is out of range is refused before anything is built from it: a layer count
of a billion would otherwise be found out only after laying out a billion layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from services.runtime.strict_json import Misfit


@dataclass(frozen=True, slots=True)
class Range:
    """From `least` to `most`, both allowed."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most  # false for what is not a number

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:,.12g}"


def check(config: Any, path: str) -> None:
    """Check every number of a dataclass and of those inside it.

    Raises:
        Misfit: naming the first field, below `path`, that lies outside its range.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for name, hint in hints.items():
        value, field = getattr(config, name), f"{path}.{name}"
        if is_dataclass(value):
            check(value, field)
            continue
        for where, number, allowed in _ranged(hint, value, field):
            if number not in allowed:
                raise Misfit(where, got=_shown(number), expected=f"a number from {allowed}")


def _ranged(hint: Any, value: Any, path: str) -> Iterator[tuple[str, float, Range]]:
    """Every number in `value` for which `hint` states a range."""
    if get_origin(hint) is tuple and isinstance(value, tuple):
        kinds = get_args(hint)
        kinds = (kinds[0],) * len(value) if kinds[-1] is Ellipsis else kinds
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True)):
            yield from _ranged(kind, item, f"{path}[{index}]")
    elif get_origin(hint) is Annotated:
        for allowed in get_args(hint)[1:]:
            if isinstance(allowed, Range):
                yield path, value, allowed


def _shown(number: float) -> str:
    """Whole numbers of thousands of digits have no text of their own."""
    if isinstance(number, int) and number.bit_length() > 128:
        return f"a whole number of {number.bit_length()} bits"
    return str(number)
