"""Fields of messages: checked, and named by their whole path in errors, however deep they lie."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from talkingmachines.errors import BadInput

E = TypeVar("E", bound=Enum)


class FieldPath:
    """Puts the path of the enclosing message before the field that an error names.

    A class and not a generator, because a type checker then knows that nothing is swallowed.
    """

    def __init__(self, at: str) -> None:
        self._at = at

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, BadInput):
            field = f"{self._at}.{error.field}"
            raise BadInput(field, got=error.got, expected=error.expected) from None


def unsigned(field: str, value: int, *, bits: int) -> None:
    """Check that the wire can carry `value` in a field of so many bits.

    Raises:
        BadInput: it cannot.
    """
    if not 0 <= value < 1 << bits:
        raise BadInput(field, got=value, expected=f"0 to 2^{bits} - 1")


def member(kind: type[E], value: int, *, at: str) -> E:
    """The member of `kind` that a proto enum's number stands for.

    Raises:
        BadInput: the number is UNSPECIFIED or unknown; names those that are known.
    """
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(known.name for known in kind)
        raise BadInput(at, got=value, expected=f"one of {names}") from None
