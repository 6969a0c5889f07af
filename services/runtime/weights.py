"""Say exactly how a checkpoint fails to fit a model.

Both model services compare names and shapes before they touch a tensor; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]

_SHOWN = 12  # names per list in the message; the attributes hold them all


@dataclass(frozen=True, slots=True)
class Misshapen:
    name: str
    got: Shape
    expected: Shape

    def __str__(self) -> str:
        return f"{self.name}: got {list(self.got)}, expected {list(self.expected)}"


class BadCheckpoint(ValueError):
    """A checkpoint that does not fit, with the lists a person needs to see why."""

    def __init__(
        self,
        source: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Sequence[Misshapen] = (),
        why: str = "",
    ) -> None:
        self.source = source
        self.missing = list(missing)
        self.unexpected = list(unexpected)
        self.misshapen = list(misshapen)
        lists = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", [str(item) for item in self.misshapen]),
        )
        parts = [why] if why else []
        parts += [_listed(title, names) for title, names in lists if names]
        super().__init__(f"{source} does not fit: " + "; ".join(parts))


def fit(source: str, *, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Refuse `found` (names and shapes in a file) unless it is exactly `expected` (the model's).

    Raises:
        BadCheckpoint: with every missing, unexpected and wrongly shaped name.
    """
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = [
        Misshapen(name, tuple(found[name]), tuple(expected[name]))
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name]) != tuple(expected[name])
    ]
    if missing or unexpected or misshapen:
        raise BadCheckpoint(source, missing=missing, unexpected=unexpected, misshapen=misshapen)


def _listed(title: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {title} ({', '.join(names[:_SHOWN])}{more})"
